"""Chat: the prompt is the training's, adapters are switched exactly, answers come in pieces that join to the whole,
and what is typed does what /help says."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merging import finished_run
from rich.console import Console
from transformers import AutoTokenizer

import tunecli
from tests.data.conftest import family, plain_tokenizer, template_text  # noqa: F401 - fixtures
from tunecli.chat import answering
from tunecli.chat.answering import _Text, answer
from tunecli.chat.once import answer_prompts
from tunecli.chat.rendering import Rendering
from tunecli.chat.session import Session, open_session
from tunecli.chat.settings import Settings, changed
from tunecli.chat.terminal import Chat, Wrapping
from tunecli.config.compose import compose_run
from tunecli.config.data import SystemPolicy, Thinking
from tunecli.config.errors import UserError
from tunecli.config.peft import LoraConfig
from tunecli.config.run import RunConfig, to_yaml
from tunecli.data.examples import Messages, PromptCompletion
from tunecli.data.formats.turns import read_conversation
from tunecli.data.prompts import formats_of, trained_on_raw_text
from tunecli.data.templates import apply_chat_template_choice
from tunecli.data.tokenize import Encoding, tokenize
from tunecli.models.builtin import byte_tokenizer, materialize
from tunecli.models.load import load_model
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.source import find_source

SYSTEM = {"role": "system", "content": "Answer in one word."}
TURNS = [
    {"role": "user", "content": "  What is the capital of France? "},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Japan? 👋🏽\n\tNow!"},
    {"role": "assistant", "content": "<think>\nhm, Japan\n</think>\n\nTokyo, 东京"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Welcome"},
]
GREEDY = Settings(temperature=0.0, max_new_tokens=8)
IDS = torch.randint(4, 200, (1, 12), generator=torch.Generator().manual_seed(0))


def quiet(piece: str) -> None:
    """Shows nothing."""


def write_run(folder: Path, seed: int, *overrides: str, adapters: tuple[str, ...] = ("lora",)) -> Path:
    """A run directory whose adapters are moved away from their start."""
    words = ["model.path=builtin:tiny_llama", *overrides, *(f"+peft@peft.{name}=lora" for name in adapters[1:])]
    config = compose_run("smoke_sft_lora", words).config
    lm = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"))
    inject(lm, {name: LoraConfig(r=4) for name in adapters}, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    save_adapters(lm, adapters, folder / "adapter", base=str(materialize("tiny_llama")))
    tokenizer = byte_tokenizer()
    apply_chat_template_choice(tokenizer, config.data.chat_template)
    tokenizer.save_pretrained(folder / "adapter")
    torch.save(lm(IDS).logits.detach(), folder / "logits.pt")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    system = ["data.system=replace", "data.system_prompt='Be brief, [1]'", "data.chat_template=alpaca"]
    return {
        "one": write_run(folder / "one", 1),
        "two": write_run(folder / "two", 2, *system, adapters=("lora", "second")),
    }


@pytest.fixture
def session(runs: dict[str, Path]) -> Session:
    return open_session([str(runs["one"]), str(runs["two"])], GREEDY, None)


@pytest.fixture(scope="module")
def base_logits() -> torch.Tensor:
    config = compose_run("smoke_sft_lora", []).config
    with torch.no_grad():
        return load_model(config.model, dtype=torch.float32, device=torch.device("cpu")).eval()(IDS).logits


def logits(session: Session) -> torch.Tensor:
    with torch.no_grad():
        return session.lm(IDS).logits


class TestPrompts:
    """Law: the ids that chat sends are those that training put before the answer."""

    @pytest.mark.parametrize("with_system", [False, True])
    @pytest.mark.parametrize("thinking", list(Thinking))
    @pytest.mark.parametrize(
        "name",
        ["smollm2", "llama3", "llama3_2", "qwen2_5", "qwen3", "gemma3", "phi3", "gptoss", "deepseek_r1_distill"],
    )
    def test_are_those_of_training(self, family, name: str, thinking: Thinking, with_system: bool):  # noqa: F811
        tokenizer = family(name)
        conversation = [SYSTEM, *TURNS] if with_system else TURNS
        encoding = Encoding(max_length=4096, thinking=thinking)
        items = tokenize(Messages(conversation), tokenizer, encoding)
        trained = [item.input_ids[:start] for item in items for start, _ in item.spans]
        questions = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
        assert len(trained) == len(questions) == 3
        rendering = Rendering(tokenizer, encoding, raw=False)
        assert [rendering.ids(conversation[:i]) for i in questions] == trained

    @pytest.mark.parametrize("choice", ["chatml", "alpaca"])
    def test_with_a_template_of_ours_and_a_system_message_of_the_run(self, plain_tokenizer, choice: str):  # noqa: F811
        apply_chat_template_choice(plain_tokenizer, choice)
        encoding = Encoding(system=SystemPolicy.add, system_prompt="Answer in one word.")
        (item,) = tokenize(Messages(TURNS[:2]), plain_tokenizer, encoding)
        trained = item.input_ids[: item.spans[0][0]]
        rendering = Rendering(plain_tokenizer, encoding, raw=False)
        assert rendering.ids([{"role": "system", "content": rendering.system}, TURNS[0]]) == trained
        assert rendering.ids([{"role": "system", "content": "Other"}, TURNS[0]]) != trained

    def test_of_variables_of_the_template(self, family):  # noqa: F811
        tokenizer = family("qwen3")
        encoding = Encoding(chat_template_kwargs={"enable_thinking": False})
        (item,) = tokenize(Messages(TURNS[:2]), tokenizer, encoding)
        rendering = Rendering(tokenizer, encoding, raw=False)
        assert rendering.ids(TURNS[:1]) == item.input_ids[: item.spans[0][0]]
        assert "<think>\n\n</think>" in tokenizer.decode(rendering.ids(TURNS[:1]))

    def test_of_raw_text(self, plain_tokenizer):  # noqa: F811
        (item,) = tokenize(PromptCompletion("Hello, ", "world!"), plain_tokenizer, Encoding())
        rendering = Rendering(plain_tokenizer, Encoding(), raw=False)
        assert rendering.raw  # there is no template
        assert rendering.ids([{"role": "user", "content": "Hello, "}]) == item.input_ids[: item.spans[0][0]]

    def test_in_a_session_with_history_and_the_systems_of_the_runs(self, session: Session):
        def trained(folder: str) -> list[int]:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            conversation = [*session.messages, {"role": "user", "content": "?"}]
            system = [{"role": "system", "content": "Be brief, [1]"}] if "two" in folder else []
            (item,) = tokenize(
                Messages([*system, *conversation, {"role": "assistant", "content": "x"}]), tokenizer, Encoding()
            )
            return item.input_ids[: item.spans[-1][0]]

        for text in ("Hello", "More\n words"):
            session.ask(text, quiet)
        for name in ("one", "two", "one"):
            session.switch(name)
            folder = str(Path(session.models[name].rendering.tokenizer.name_or_path))
            assert session.prompt_ids([*session.messages, {"role": "user", "content": "?"}]) == trained(folder)

    def test_what_the_template_refuses(self, family):  # noqa: F811
        rendering = Rendering(family("gemma"), Encoding(), raw=False)
        with pytest.raises(UserError, match="/system none"):
            rendering.ids([SYSTEM, *TURNS[:1]])


def trained_raw(config: RunConfig, run_dir: Path) -> bool:
    return trained_on_raw_text(config.data, formats_of(config, run_dir))


class TestRawRuns:
    def config(self, *overrides: str) -> RunConfig:
        return compose_run("smoke_sft_lora", list(overrides)).config

    def test_formats_that_the_run_noted(self, tmp_path: Path):
        config = self.config("data.format=auto")
        for formats, raw in (
            (["text, told from the columns (text: content)"], True),
            (["alpaca, told from the columns"], False),
            (["text", "messages"], False),
        ):
            (tmp_path / "environment.json").write_text(json.dumps({"data": {"train": {"formats": formats}}}))
            assert trained_raw(config, tmp_path) is raw

    def test_without_a_note_the_configuration_tells(self, tmp_path: Path):
        assert trained_raw(self.config("data.format=text"), tmp_path)
        assert not trained_raw(self.config("data.format=messages"), tmp_path)
        assert not trained_raw(self.config("data.format=auto"), tmp_path)

    @pytest.mark.parametrize(
        ("row", "raw"),
        [({"prompt": "a", "completion": "b"}, True), ({"prompt": [TURNS[0]], "completion": [TURNS[1]]}, False)],
    )
    def test_prompts_and_completions_may_be_conversations(self, tmp_path: Path, row: dict, raw: bool):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row))
        config = self.config("data.format=prompt_completion", f"data.path={file}")
        assert trained_raw(config, tmp_path) is raw
        file.unlink()
        assert trained_raw(config, tmp_path)

    def test_the_text_is_continued_as_it_is(self, tmp_path: Path):
        run = write_run(tmp_path / "raw", 3, "data.format=text")
        raw = open_session([str(run)], GREEDY, None)
        expected = raw.active.rendering.tokenizer("once upon")["input_ids"]
        assert raw.prompt_ids([{"role": "user", "content": "once upon"}]) == expected
        raw.ask("once upon", quiet)
        raw.ask("a time", quiet)
        assert raw.prompt_ids([*raw.messages, {"role": "user", "content": "once upon"}]) == expected
        raw.save(tmp_path / "rows.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == ["once upon", "a time"] and "completion" in rows[0]


class TestSources:
    def test_every_switch_gives_exactly_what_it_names(self, session: Session, runs, base_logits):
        expected = {name: torch.load(run / "logits.pt") for name, run in runs.items()} | {"base": base_logits}
        assert not torch.allclose(expected["one"], expected["two"], atol=1e-2)
        for name in ("one", "base", "two", "base", "two", "one", "base"):
            session.switch(name)
            assert torch.equal(logits(session), expected[name]), name

    def test_runs_of_every_kind_and_compositions_of_them(self, tmp_path: Path, base_logits):
        kinds = ["lora", "houlsby", "bitfit", "ia3", "ln_tuning", "vera", "lora,ia3", "houlsby,bitfit,lora"]
        runs = []
        for seed, kind in enumerate(kinds):
            own = ["peft.bitfit.add_missing=true"] if "bitfit" in kind else []
            runs.append(finished_run(tmp_path / kind.replace(",", "-"), f"peft=[{kind}]", *own, seed=seed))
        session = open_session([str(run) for run in runs], GREEDY, None)
        names = [name for name in session.models if name != "base"]
        for name, run in [*zip(names, runs, strict=True)][::-1]:
            session.switch(name)
            with torch.no_grad():
                expected = tunecli.load(run)[0](IDS).logits
            assert torch.allclose(logits(session), expected, atol=1e-5)
            assert not torch.allclose(expected, base_logits, atol=1e-3)
            session.switch("base")
            assert torch.equal(logits(session), base_logits)
        assert session.ask("Hello", quiet).tokens

    def test_an_adapter_folder_is_rendered_as_its_run(self, runs):
        source = find_source(str(runs["two"] / "adapter" / "second"))
        assert source.run is not None and [path.name for path in source.adapters] == ["second"]
        assert source.run.data.system_prompt == "Be brief, [1]"

    def test_a_foreign_adapter_folder(self, runs, tmp_path: Path, base_logits):
        folder = tmp_path / "foreign"
        shutil.copytree(runs["one"] / "adapter" / "lora", folder)
        session = open_session([str(folder)], GREEDY, None)
        assert torch.equal(logits(session), torch.load(runs["one"] / "logits.pt"))
        session.switch("base")
        assert torch.equal(logits(session), base_logits)

    def test_of_one_base_or_refused(self, runs, tmp_path: Path):
        other = write_run(tmp_path / "qwen", 4, "model.path=builtin:tiny_qwen3", "data.format=text")
        with pytest.raises(UserError, match=r"tiny_llama and base builtin:tiny_qwen3(.|\n)*fix:"):
            open_session([str(runs["one"]), str(other)], GREEDY, None)
        with pytest.raises(UserError, match="cannot be in one model"):
            open_session(["builtin:tiny_qwen3", str(runs["one"])], GREEDY, None)
        with_base = open_session(["builtin:tiny_llama", str(runs["one"])], GREEDY, None)
        assert list(with_base.models) == ["one", "base"]

    def test_a_whole_model_has_nothing_to_switch_off(self, base_logits):
        session = open_session(["builtin:tiny_llama"], GREEDY, None)
        assert list(session.models) == ["builtin:tiny_llama"] and torch.equal(logits(session), base_logits)

    def test_an_adapter_on_the_hub(self, runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """As the Hub's cache holds it, without a network."""
        repository = tmp_path / "models--me--lora"
        shutil.copytree(runs["one"] / "adapter" / "lora", repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        for module in ("huggingface_hub.constants", "transformers.utils.hub"):
            monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path), raising=False)
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
        session = open_session(["me/lora"], GREEDY, None)
        assert torch.equal(logits(session), torch.load(runs["one"] / "logits.pt"))

    @pytest.mark.parametrize("changed_value", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
    def test_adapters_that_change_the_base_are_refused(self, runs, tmp_path: Path, changed_value: dict):
        folder = tmp_path / "adapter"
        shutil.copytree(runs["one"] / "adapter" / "lora", folder)
        saved = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(saved | changed_value))
        with pytest.raises(UserError, match="merge it"):
            open_session([str(folder)], GREEDY, None)

    def test_mistakes(self, runs, tmp_path: Path):
        (tmp_path / "config.yaml").write_text((runs["one"] / "config.yaml").read_text())
        for path, message in (
            (str(tmp_path), "tune resume"),
            (str(tmp_path / "not" / "there"), "there is no folder"),
            ("builtin:nothing", "tiny_llama"),
            ("nobody/nothing", "cannot load"),
        ):
            with pytest.raises(UserError, match=message):
                open_session([path], GREEDY, None)
        with pytest.raises(UserError, match="twice"):
            open_session([str(runs["one"])] * 2, GREEDY, None)


def test_every_model_answers_a_prompt_of_a_script(session: Session, capsys: pytest.CaptureFixture[str]):
    answer_prompts(session, ["Hello"], every_model=True, as_json=True)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["model"] for record in records] == list(session.models) == ["one", "two", "base"]
    for record in records:
        session.switch(record["model"])
        assert record["text"] == session.ask_alone("Hello", quiet).text
    answer_prompts(session, ["Hello"], every_model=True, as_json=False)
    assert capsys.readouterr().out == "".join(f"{record['model']}:\n{record['text']}\n" for record in records)


class TestAnswers:
    def ids(self, session: Session, text: str = "Hello") -> list[int]:
        return session.prompt_ids([{"role": "user", "content": text}])

    def greedy(self, session: Session, ids: list[int], number: int) -> list[int]:
        """The likeliest tokens, one by one, without any code of `generate`."""
        for _ in range(number):
            with torch.no_grad():
                ids = [*ids, int(session.lm(torch.tensor([ids])).logits[0, -1].argmax())]
        return ids

    def test_pieces_join_to_the_greedy_answer(self, session: Session):
        pieces: list[str] = []
        ids = self.ids(session)
        settings = replace(GREEDY, max_new_tokens=12)
        found = answer(session.lm, session.active.rendering, ids, settings, pieces.append)
        tokenizer = session.active.rendering.tokenizer
        expected = self.greedy(session, ids, 12)[len(ids) :]
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert "".join(pieces) == found.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert found.tokens == len(expected) > 0

    def test_the_seed_alone_decides_a_drawn_answer(self, session: Session):
        def draw(seed: int | None) -> str:
            return answer(session.lm, session.active.rendering, self.ids(session), settings(seed), quiet).text

        def settings(seed: int | None) -> Settings:
            return Settings(temperature=1.5, seed=seed, max_new_tokens=16)

        state = torch.get_rng_state()
        assert draw(1) == draw(1) != draw(2)
        assert draw(None) != draw(None)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize("where", ["tokenizer", "generation config"])
    def test_stops_at_every_end_token(self, session: Session, where: str):
        ids = self.ids(session)
        expected = self.greedy(session, ids, 4)[len(ids) :]
        end = expected[-1]
        rendering = session.active.rendering
        if where == "tokenizer":
            rendering.tokenizer.eos_token = rendering.tokenizer.convert_ids_to_tokens(end)
        else:
            session.lm.generation_config.eos_token_id = [end, 1]
        found = answer(session.lm, rendering, ids, replace(GREEDY, max_new_tokens=30), quiet)
        assert found.ended == "end" and found.tokens == expected.index(end)

    def test_cut_at_the_length_and_at_the_end_of_the_context(self, session: Session):
        ids = self.ids(session)
        session.lm.generation_config.eos_token_id = None
        found = answer(session.lm, session.active.rendering, ids, replace(GREEDY, max_new_tokens=3), quiet)
        assert (found.ended, found.tokens) == ("length", 3) or found.ended == "end"
        session.lm.config.max_position_embeddings = len(ids) + 2
        found = answer(session.lm, session.active.rendering, ids, GREEDY, quiet)
        assert found.tokens <= 2
        session.lm.config.max_position_embeddings = len(ids)
        with pytest.raises(UserError, match="/undo"):
            answer(session.lm, session.active.rendering, ids, GREEDY, quiet)

    def test_ctrl_c_ends_the_answer_and_keeps_what_there_is(self, session: Session, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(answering, "stop_ids", lambda lm, eos: [])
        monkeypatch.setattr(Rendering, "stop_ids", [])
        pieces: list[str] = []

        def interrupt(piece: str) -> None:
            pieces.append(piece)
            if len(pieces) == 3:
                signal.raise_signal(signal.SIGINT)

        session.settings = replace(GREEDY, max_new_tokens=1000)
        threads = threading.active_count()
        found = session.ask("Hello", interrupt)
        assert found.ended == "stopped" and found.tokens < 1000 and found.text.startswith("".join(pieces[:3]))
        assert session.messages[-1]["content"] == found.text
        assert threading.active_count() == threads

    def test_an_error_in_generation_is_not_swallowed(self, session: Session, monkeypatch: pytest.MonkeyPatch):
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(session.lm, "generate", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.ask("Hello", quiet)
        assert not session.messages

    def shown(self, rendering: Rendering, text: str, context: list[int]) -> tuple[list[str], str, bool]:
        pieces: list[str] = []
        growing = _Text(rendering, context, pieces.append)
        ids = rendering.tokenizer(text, add_special_tokens=False)["input_ids"]
        ended = [growing.add(token) for token in ids]
        return pieces, growing.finish(), any(ended)

    def test_characters_come_whole(self):
        rendering = Rendering(byte_tokenizer(), Encoding(), raw=False)
        text = "naïve 👋🏽 東京 \n  indented\tend "
        pieces, whole, _ = self.shown(rendering, text, [])
        assert "".join(pieces) == whole == text
        assert not any("\ufffd" in piece for piece in pieces)

    def test_an_end_of_turn_that_is_written_out_is_not_shown(self, plain_tokenizer):  # noqa: F811
        """ChatML over a tokenizer that does not know its marks."""
        apply_chat_template_choice(plain_tokenizer, "chatml")
        rendering = Rendering(plain_tokenizer, Encoding(), raw=False)
        assert rendering.stop_text == "<|im_end|>"
        assert rendering.stop_ids == [plain_tokenizer.eos_token_id]
        pieces, whole, ended = self.shown(rendering, "1 <|im_s 2 <<|im_end|>", [])
        assert "".join(pieces) == whole == "1 <|im_s 2 <" and ended

    @pytest.mark.parametrize(
        ("name", "end"), [("phi3", "<|end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")]
    )
    def test_the_templates_own_end_of_turn_ends_an_answer(self, family, name: str, end: str):  # noqa: F811
        tokenizer = family(name)
        rendering = Rendering(tokenizer, Encoding(), raw=False)
        assert tokenizer.convert_tokens_to_ids(end) in rendering.stop_ids and rendering.stop_text == ""


class TestSettings:
    def test_values_are_read_and_checked(self):
        settings = changed(changed(Settings(), "temperature=0.2"), "seed=7")
        assert (settings.temperature, settings.seed) == (0.2, 7)
        assert changed(settings, "seed=none").seed is None

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("temprature=1", "did you mean temperature"),
            ("temperature=-1", "at least 0"),
            ("temperature=nan", "at least 0"),
            ("temperature=none", "at least 0"),
            ("top_p=0", "above 0"),
            ("top_p=1.1", "at most 1"),
            ("top_k=1.5", "whole number"),
            ("max_new_tokens=0", "at least 1"),
            ("seed=x", "or none"),
            ("repetition_penalty=0", "above 0"),
            ("temperature", "at least 0"),
        ],
    )
    def test_mistakes(self, word: str, message: str):
        with pytest.raises(UserError, match=message):
            changed(Settings(), word)


@pytest.fixture
def talk(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`talk(lines...)`: what a terminal of `width` shows when these lines are typed. An exception is raised in place
    of a line."""
    monkeypatch.chdir(tmp_path)

    def type_in(*lines: str | type[BaseException], width: int = 80) -> str:
        screen = io.StringIO()
        waiting: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

        def read(prompt: str) -> str:
            line = next(waiting)
            screen.write(prompt)
            if not isinstance(line, str):
                raise line
            screen.write(line + "\n")
            return line

        Chat(session, read, Console(file=screen, width=width, highlight=False)).run()
        return screen.getvalue()

    return type_in


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`said(texts..., stopped=..., length=...)`: what the models answer from now on, and which of it ended so."""

    def prepare(*texts: str, stopped: tuple[str, ...] = (), length: tuple[str, ...] = ()) -> None:
        coming = iter(texts)

        def give(*_: object) -> answering.Answer:
            text = next(coming)
            ended = "stopped" if text in stopped else "length" if text in length else "end"
            return answering.Answer(text, 1, ended, 0)

        monkeypatch.setattr("tunecli.chat.session.answer", give)

    return prepare


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def questions(session: Session) -> list[str]:
    return [message["content"] for message in session.messages[::2]]


class TestWrapping:
    def screen(self, written: str) -> list[str]:
        """The lines that a terminal shows, which knows "n columns to the left, erase from there"."""
        parts = re.split(r"\x1b\[(\d+)D\x1b\[K", written)
        shown = parts[0]
        for columns, part in zip(parts[1::2], parts[2::2], strict=True):
            shown = shown[: -int(columns)] + part
        return shown.split("\n")

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_lines_break_between_words_however_the_pieces_come(self, size: int):
        text = (
            "A tale of two loyal companions: Luna  and Max.\n\n  indented, then unbreakable-"
            + "x" * 50
            + " end. " * 9
        )
        wrapping = Wrapping(Console(file=io.StringIO(), width=20, force_terminal=True))
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        lines = self.screen("".join(map(wrapping.add, pieces)))
        assert all(len(line) < 20 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())
        begin = ["A tale of two loyal", "companions: Luna", "and Max.", "", "  indented, then"]
        assert [line.rstrip() for line in lines[:5]] == begin

    def test_wide_characters_and_files(self):
        wrapping = Wrapping(Console(file=io.StringIO(), width=20, force_terminal=True))
        lines = self.screen("".join(map(wrapping.add, "東" * 25)))
        assert lines == ["東" * 9, "東" * 9, "東" * 7]
        assert Wrapping(Console(file=io.StringIO(), width=20)).add("ab " * 20) == "ab " * 20


class TestTyping:
    def test_switching(self, session: Session, talk):
        shown = talk("/adapter two", "/adapter", "/base", "/adapter tow", "/adapter one")
        assert "one> /adapter two" in shown and "● two" in shown and "base> /adapter tow" in shown
        assert "did you mean two" in shown and session.active.name == "one"

    def test_lines_and_blocks(self, session: Session, talk):
        talk(
            "one\\", "two\\", "three", '"""', "a", "", '  b"""', '"""all"""', '"""x', "y", '"""', "//slash", "", "  "
        )
        assert questions(session) == ["one\ntwo\nthree", "a\n\n  b", "all", "x\ny", "/slash"]

    def test_undo_reset_and_mistakes(self, session: Session, talk):
        shown = talk("first", "second", "/undo", "/undo", "/undo", "/foo", "/sav", "third", "/reset")
        assert "taken back: second" in shown and "nothing to take back" in shown
        assert "no command /foo" in shown and "did you mean /save" in shown
        assert session.messages == []

    def test_ctrl_c_at_the_prompt_goes_on_and_quit_ends(self, session: Session, talk):
        assert "/quit ends" in talk(KeyboardInterrupt, "first", "/quit", "never")
        assert questions(session) == ["first"]

    def test_settings(self, session: Session, talk):
        shown = talk("/set temperature=0.3 top_k=5", "/set temperature=2 topp=3", "/set")
        assert "did you mean top_p" in shown
        assert (session.settings.temperature, session.settings.top_k) == (0.3, 5)  # nothing of a line with a mistake

    def test_the_system_message_is_the_runs_until_it_is_chosen(self, session: Session, talk):
        shown = talk(
            "/system", "/adapter two", "/system", "/system Be long.", "/adapter one", "/system", "/system none"
        )
        assert shown.index("there is no system message") < shown.index("system: Be brief, [1]")
        assert shown.count("system: Be long.") == 2 and shown.count("there is no system message") == 2
        assert session.chosen_system == ""

    def test_saved_conversations_are_what_we_train_on(self, session: Session, talk, said, tmp_path: Path):
        said("Hi", "two\nlines 東")
        shown = talk("/save chats.jsonl", "/adapter two", "Hello", "More\\", "lines", "/save chats.jsonl")
        assert "no answer to save yet" in shown and "1 row added" in shown and "not trained" not in shown
        (row,) = rows_of(tmp_path / "chats.jsonl")
        assert row["messages"] == [{"role": "system", "content": "Be brief, [1]"}, *session.messages]
        (item,) = tokenize(Messages(row["messages"]), session.active.rendering.tokenizer, Encoding())
        prompt = session.prompt_ids(session.messages[:3])
        assert item.input_ids[: len(prompt)] == prompt
        assert "cannot be written" in talk("/save no/such/folder/x.jsonl")

    def test_answers_without_an_end_or_under_another_system_are_not_trained_on(
        self, session: Session, talk, said, tmp_path: Path
    ):
        said("early", "whole", "stopp", "cut", stopped=("stopp",), length=("cut",))
        shown = talk("/system Old.", "a", "/system New.", "b", "c", "d", "/system Later.", "/save chats.jsonl")
        (row,) = rows_of(tmp_path / "chats.jsonl")
        assert row["messages"][0] == {"role": "system", "content": "New."}
        assert [message.get("train") for message in row["messages"][2::2]] == [False, None, False, False]
        (item,) = tokenize(
            read_conversation(row["messages"], "messages"), session.active.rendering.tokenizer, Encoding()
        )
        trained = [item.input_ids[start:end] for start, end in item.spans]
        assert [session.active.rendering.tokenizer.decode(ids, skip_special_tokens=True) for ids in trained] == [
            "whole"
        ]
        told = "not trained on: 3 answers (1 was given under another system message, 1 was stopped, 1 was cut"
        assert told in " ".join(shown.split())

    def test_nothing_is_saved_twice_and_only_as_jsonl(self, session: Session, talk, said, tmp_path: Path):
        said("one", "half", "two", stopped=("half",))
        shown = talk("Hello", "/save a.jsonl", "/save ./a.jsonl", "/save a.txt", "/save b.jsonl")
        assert "nothing is new since the last /save" in shown and "fix: /save a.jsonl" in shown
        assert len(rows_of(tmp_path / "a.jsonl")) == 1 and not (tmp_path / "a.txt").exists()
        talk("/undo", "stop me", "/save c.jsonl")
        assert "no whole answer" in talk("/save c.jsonl") and not (tmp_path / "c.jsonl").exists()
        talk("/undo", "more", "/save a.jsonl")
        assert [row["messages"][-1]["content"] for row in rows_of(tmp_path / "a.jsonl")] == ["one", "two"]

    def test_long_names_are_shortened_in_the_prompt(self, session: Session, talk):
        session.active = replace(session.active, name="sft_lora_smollm2 2026-11-22_21-40-43")
        prompt = talk("/help").splitlines()[-1]
        assert prompt == "sft_lora_sm…026-11-22_21-40-43> "

    @pytest.mark.parametrize("width", [80, 120])
    def test_compare(self, session: Session, talk, width: int):
        """Same answers as on their own, side by side where there is room, and the conversation as it was."""
        session.settings = Settings(temperature=1.0, max_new_tokens=5)
        shown = talk("/adapter two", "/compare What is red?", width=width)
        heads = [line for line in shown.splitlines() if "base" in line or "one" in line and ">" not in line]
        together = any("base" in line and "one" in line and "two" in line for line in heads)
        assert together is (width == 120)
        assert all(len(line) <= width for line in shown.splitlines())
        assert session.messages == [] and session.active.name == "two" and session.settings.seed is None

    def test_what_a_model_writes_does_nothing_to_the_terminal(self, session: Session, talk, monkeypatch):
        """Also an escape sequence that comes in two pieces."""

        def ask(text: str, show: Callable[[str], None]) -> answering.Answer:
            for piece in ("a\x1b", "[2Jb\x9b1m\r\u202e", "\nc"):
                show(piece)
            return answering.Answer("", 3, "end", 0)

        monkeypatch.setattr(Session, "ask", lambda self, text, show: ask(text, show))
        monkeypatch.setattr(
            Session, "ask_alone", lambda self, text, show: answering.Answer("x\x1b[2J[red]", 1, "end", 0)
        )
        for width in (80, 120):
            shown = talk("Hello", "/compare x", width=width)
            assert "a\\x1b[2Jb\\x9b1m\\r\\u202e\nc" in shown and not {"\x1b", "\x9b", "\u202e"} & set(shown)
        assert "x\\x1b[2J[red]" in shown

    def test_help_names_every_command(self, session: Session, talk):
        shown = talk("/help")
        for name in ("adapter", "base", "compare", "system", "set", "save", "undo", "reset", "help", "quit"):
            assert f"/{name}" in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
