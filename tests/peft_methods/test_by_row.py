"""One adapter for each row of a batch: the same as each row alone with its adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import EVERY, GENERATING, inputs_of, logits_of, model_of, with_virtual_tokens
from tiny import RandomExamples, batching
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, gradients

import tunecli
from tunecli.chat.once import answer_prompts
from tunecli.chat.session import open_session
from tunecli.chat.settings import Settings
from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run, load_config
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig, Quantization
from tunecli.config.peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, PTuningV2Config
from tunecli.data.batching import collate
from tunecli.data.encode import RowEncoder
from tunecli.data.formats import choose_format
from tunecli.data.rows import Row
from tunecli.data.tokens import Encoding
from tunecli.models.attention import ADAPTER_OF_ROW
from tunecli.models.builtin import byte_tokenizer
from tunecli.models.load import load_model
from tunecli.models.policy import Policy, use_packed_attention
from tunecli.peft_methods.by_row import route_rows
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.injection import activate, adapter_name
from tunecli.peft_methods.token_ids import places_of_virtual_tokens
from tunecli.preview import preview
from tunecli.preview.examples import Wanted

KINDS: dict[str, dict[str, PeftConfig]] = {
    "lora": {"a": LoraConfig(r=2), "b": LoraConfig(r=5, use_rslora=True)},
    "prefix_tuning": {
        "a": PrefixTuningConfig(num_virtual_tokens=2, encoder_hidden_size=16),
        "b": PrefixTuningConfig(num_virtual_tokens=5, encoder_hidden_size=16),
    },
    "mixed": {"a": LoraConfig(r=3), "b": PTuningV2Config(num_virtual_tokens=3)},
}
CHOSEN = torch.tensor([1, 0])
"""The first row is for b, the second for a."""


def routed(kind: str, architecture: str, task: str) -> PreTrainedModel:
    model = model_of(architecture, task)
    inject(model, KINDS[kind], seed=0)
    route_rows(model, [adapter_name(name) for name in KINDS[kind]])
    return disturbed(model)


def only(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    activate(model, map(adapter_name, names))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "task"), EVERY)
class TestEverywhere:
    def test_a_row_is_as_with_its_adapter_alone(self, kind: str, architecture: str, task: str) -> None:
        model, inputs = routed(kind, architecture, task), inputs_of(architecture, task)
        together = logits_of(model, inputs | {ADAPTER_OF_ROW: CHOSEN})
        first = logits_of(only(model, "b"), inputs)
        second = logits_of(only(model, "a"), inputs)
        assert not torch.allclose(first, second, atol=1e-2)
        assert_close(together[0], first[0], atol=5e-5, rtol=0)
        assert_close(together[1], second[1], atol=5e-5, rtol=0)

    def test_a_row_without_adapter_is_the_base_s(self, kind: str, architecture: str, task: str) -> None:
        inputs = inputs_of(architecture, task)
        expected = logits_of(model_of(architecture, task), inputs)
        found = logits_of(routed(kind, architecture, task), inputs | {ADAPTER_OF_ROW: torch.tensor([-1, 0])})
        assert_close(found[0], expected[0], atol=5e-5, rtol=0)
        assert not torch.allclose(found[1], expected[1], atol=1e-2)

    def test_an_adapter_s_gradient_is_of_its_rows_and_every_adapter_has_one(
        self, kind: str, architecture: str, task: str
    ) -> None:
        """Also in checkpointed layers, which run again in backward."""
        model, inputs = routed(kind, architecture, task), inputs_of(architecture, task)
        alike = gradients(model, inputs | {ADAPTER_OF_ROW: torch.tensor([0, 0])})
        for name, gradient in alike.items():
            assert (gradient.abs().max() > 0) == (".tune_a." in name), name
        plain = gradients(model, inputs | {ADAPTER_OF_ROW: CHOSEN})
        assert all(gradient.abs().max() > 0 for gradient in plain.values())
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(model, inputs | {ADAPTER_OF_ROW: CHOSEN})
        for name, gradient in plain.items():
            assert_close(again[name], gradient, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "task"), GENERATING)
def test_generated_together_as_alone(kind: str, architecture: str, task: str, beams: int) -> None:
    model = routed(kind, architecture, task).eval()
    ids = inputs_of(architecture, task)["input_ids"][:, :6]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    mask = torch.ones_like(ids)
    together = model.generate(ids, attention_mask=mask, **settings, **{ADAPTER_OF_ROW: CHOSEN})
    assert torch.equal(together[0], only(model, "b").generate(ids, attention_mask=mask, **settings)[0])
    assert torch.equal(together[1], only(model, "a").generate(ids, attention_mask=mask, **settings)[1])


class TwoUsers(RandomExamples):
    """In turn for the first and the second adapter."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(lengths)
        self.adapters = [i % 2 for i in range(len(lengths))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_packed_and_padded_rows_are_as_alone(kind: str, architecture: str) -> None:
    model, examples = routed(kind, architecture, "causal_lm").eval(), TwoUsers([9, 4, 7])

    def logprobs(indices: list[int], *, packed: bool, multiple: int = 1) -> Tensor:
        policy = Policy(model, packed=packed)
        policy.multiple = multiple
        with torch.no_grad():
            return policy(collate(examples, indices, batching(packed=packed)))

    alone = torch.cat([logprobs([i], packed=False) for i in range(3)])
    assert_close(logprobs([0, 1, 2], packed=False), alone, atol=2e-5, rtol=0)
    use_packed_attention(model)
    assert_close(logprobs([0, 1, 2], packed=True), alone, atol=2e-5, rtol=0)
    assert_close(logprobs([0, 1, 2], packed=True, multiple=32), alone, atol=2e-5, rtol=0)


def test_on_a_quantized_base() -> None:
    config = ModelConfig(path="builtin:tiny_llama", quantization=Quantization.nf4)
    model = load_model(config, dtype=torch.float32, device=torch.device("cpu"))
    inject(model, KINDS["mixed"], seed=0)
    route_rows(model, ["tune_a", "tune_b"])
    disturbed(model)
    inputs = inputs_of("llama", "causal_lm")
    together = logits_of(model, inputs | {ADAPTER_OF_ROW: CHOSEN})
    assert_close(together[0], logits_of(only(model, "b"), inputs)[0], atol=1e-5, rtol=0)
    assert_close(together[1], logits_of(only(model, "a"), inputs)[1], atol=1e-5, rtol=0)


def test_virtual_tokens_of_two_adapters_have_ids_of_their_own() -> None:
    model = model_of("llama", "causal_lm")
    inject(model, {name: PromptTuningConfig(num_virtual_tokens=2) for name in "ab"}, seed=0)
    inputs = inputs_of("llama", "causal_lm")
    first, second = (model.peft_config[f"tune_{name}"].token_ids for name in "ab")
    assert not {*first} & {*second}
    apart = [logits_of(model, with_virtual_tokens(inputs, ids)) for ids in (first, second)]
    both = with_virtual_tokens(inputs, first)
    both["input_ids"][1] = with_virtual_tokens(inputs, second)["input_ids"][1]
    together = logits_of(model, both)
    assert_close(together[0], apart[0][0], atol=2e-6, rtol=0)
    assert_close(together[1], apart[1][1], atol=2e-6, rtol=0)
    assert not torch.allclose(apart[0], apart[1], atol=1e-3)


def encoder(adapter_column: str = "user") -> RowEncoder:
    tokenizer = byte_tokenizer()
    methods = {"ann": PromptTuningConfig(num_virtual_tokens=3), "ben": LoraConfig()}
    places = places_of_virtual_tokens(methods, tokenizer, adapter_column=adapter_column)
    first = {"prompt": "Hi", "completion": "there", "user": "ann"}
    return RowEncoder(choose_format("auto", {}, first), tokenizer, Encoding(**places))


def row(number: int, **values: object) -> Row:
    return Row("rows.jsonl", number, {"prompt": "Hi", "completion": "there", **values})


def test_rows_are_encoded_for_their_adapter() -> None:
    chunk = encoder()([row(1, user="ben"), row(2, user="ann")])
    assert chunk.adapters.tolist() == [1, 0]
    assert chunk.lengths[1] - chunk.lengths[0] == 3


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (row(2, user="eve"), "column 'user' holds 'eve', which is no entry of peft"),
        (row(2, user=None), "column 'user' holds None, which is no entry of peft"),
        (row(2, user=["ann"]), "column 'user' holds ['ann'], which is no entry of peft"),
        (row(2), "no column 'user'"),
    ],
)
def test_a_row_without_known_adapter_is_named(bad: Row, what: str) -> None:
    chunk = encoder()([row(1, user="ann"), bad])
    (entry,) = chunk.left_out
    assert (entry["source"], entry["row"], entry["what"]) == ("rows.jsonl", 2, what)
    assert len(chunk) == 1


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["peft=full"], "data.adapter_column"),
        (["peft=houlsby"], "peft.houlsby"),
        (["peft.lora.use_dora=true"], "peft.lora"),
        (["evaluation.prompts=[Hello]"], "evaluation.prompts"),
    ],
)
def test_what_cannot_be_chosen_by_row_is_refused(overrides: list[str], where: str) -> None:
    composed = compose_run("smoke_sft_lora", ["data.adapter_column=user", *overrides])
    assert where in [problem.where for problem in find_problems(composed.config)]


def test_a_run_trains_each_on_its_rows_and_they_are_used_one_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = ("ann", "ben", "cay")
    rows = [{"prompt": f"{i}", "completion": "yes", "user": users[i % 3]} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_dir = tmp_path / "run"
    words = ["peft=[]", "+peft@peft.ann=lora", "+peft@peft.ben=p_tuning_v2", "+peft@peft.cay=prompt_tuning"]
    words += ["data.path=rows.jsonl", "data.format=auto", "data.adapter_column=user", "data.validation=rows.jsonl"]
    words += ["data.overlap=keep", "train.max_steps=3", "evaluation.exact_match=3", f"output_dir={run_dir}"]
    done = subprocess.run(
        [sys.executable, "-m", "tunecli", "run", "recipe=smoke_sft_lora", *words],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modes = {file.stat().st_mode for file in (*run_dir.rglob("*.safetensors"), run_dir / "config.yaml")}
    assert len(modes) == 1, "weights have the mode of other files"
    shown = preview(load_config(run_dir / "config.yaml"), Wanted(3)).examples
    assert [example.adapter for example in shown] == list(users)
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    with pytest.raises(UserError, match=r"for different rows \(ann, ben, cay\)(.|\n)*adapter/ann, for one"):
        tunecli.load(run_dir)
    session = open_session([str(run_dir)], Settings(temperature=0.0, max_new_tokens=64), None)
    assert session.adapters == list(users)
    for i, user in enumerate(users):
        session.switch(user)
        found = session.ask_alone(str(i), lambda piece: None)
        assert found.text.strip() == samples[-3 + i]["answer"]
    session.switch("ann")
    answer_prompts(session, ["0"], every_model=False, as_json=True)
    assert "ann answers, of ann, ben, cay" in capsys.readouterr().err
    session.switch("base")
    assert session.ask_alone("0", lambda piece: None).text
