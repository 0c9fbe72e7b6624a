"""Whole runs of the stage `seq2seq`: what they measure, and what can be done with the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import tunecli
from tunecli.assembly.data import prepare_data
from tunecli.assembly.model import build_policy
from tunecli.assembly.stage import first_batches
from tunecli.chat.once import answer_prompts
from tunecli.chat.session import open_session
from tunecli.chat.settings import Settings
from tunecli.cli import main
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.train import Precision
from tunecli.config.virtual import FIRST_VIRTUAL
from tunecli.engine.console import Display
from tunecli.evaluation import texts
from tunecli.merge import logits, merge
from tunecli.models.builtin import NUM_SENTINELS

WORDS = ["recipe=smoke_seq2seq", "train.max_steps=4", "train.eval_every=4", "train.learning_rate=0.1", "launch=cpu"]
MEASURED = ["evaluation={exact_match: 11, rouge: 11, bleu: 9, chrf: 7, max_new_tokens: 8, num_beams: 2}"]


def tune(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tunecli", *words], capture_output=True, text=True, timeout=300)


def trained(run_dir: Path, *words: str) -> Path:
    done = tune("run", *WORDS, *MEASURED, *words, f"output_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [{name: value for name, value in line.items() if name.startswith("eval/")} for line in lines]
    return [each for each in found if each]


def samples(run_dir: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("seq2seq") / "run")


def test_the_loss_falls_and_answers_are_measured(run: Path) -> None:
    before, after = evaluations(run)
    assert after["eval/loss"] < before["eval/loss"]
    names = ["loss", "perplexity", "exact_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf"]
    assert {f"eval/{name}" for name in names} <= after.keys()


@pytest.mark.slow
def test_two_processes_measure_what_one_does_in_batches_of_any_size(run: Path, tmp_path: Path) -> None:
    """Those that start from what the other run ended with."""
    words = [f"peft.lora.init_from={run}", "launch.num_processes=2", "train.micro_batch_size=3", "train.max_steps=1"]
    other = trained(tmp_path / "two", *words)
    one, two = evaluations(run)[-1], evaluations(other)[0]
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4), name
    said = [
        [sample["answer"] for sample in samples(folder) if sample["step"] == step]
        for folder, step in ((run, 4), (other, 0))
    ]
    assert said[0] == said[1] and len(said[0]) == 5 and any(said[0])


def test_the_run_is_loaded_and_answers_as_it_was_measured(run: Path) -> None:
    model, tokenizer = tunecli.load(run)
    assert type(model).__name__ == "T5ForConditionalGeneration"
    last = [sample for sample in samples(run) if sample["step"] == 4]
    for sample in last[:2]:
        source = sample["prompt"].removesuffix("</s>")
        ids = torch.tensor([tunecli.prompt_ids(run, source)])
        assert ids[0].tolist() == tokenizer(source)["input_ids"]
        made = model.generate(ids, max_new_tokens=8, num_beams=2)
        assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == sample["answer"]
    assert texts.chrf([last[0]["expected"]], [last[0]["expected"]]) == {"chrf": 100.0}


def test_merged_weights_give_the_same_in_plain_transformers(run: Path, tmp_path: Path) -> None:
    merged = merge([run], tmp_path / "merged")
    assert merged.difference < 1e-5 and merged.effect is not None and merged.effect > 0.01
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    ids = [torch.arange(4, 20)]
    torch.testing.assert_close(logits(plain, ids)[0], logits(tunecli.load(run)[0], ids)[0], atol=1e-5, rtol=0)


def test_each_line_of_a_chat_is_a_source_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = open_session([str(run)], Settings(temperature=0.0, seed=0, max_new_tokens=8), None)
    found = [session.ask("总结：小明", lambda piece: None).text for _ in range(2)]
    assert found[0] == found[1]
    model, tokenizer = tunecli.load(run)
    made = model.generate(torch.tensor([tunecli.prompt_ids(run, "总结：小明")]), max_new_tokens=8)
    assert found[0] == tokenizer.decode(made[0], skip_special_tokens=True)
    answer_prompts(session, ["x"], every_model=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["prompt"] == "x"


@pytest.mark.parametrize(
    ("recipe", "model", "what"),
    [
        ("smoke_seq2seq", "tiny_llama", "is no encoder-decoder"),
        ("smoke_sft_lora", "tiny_t5", "is an encoder-decoder"),
    ],
)
def test_a_stage_refuses_models_of_another_kind(recipe: str, model: str, what: str) -> None:
    config = compose_run(recipe, [f"model={model}"]).config
    with pytest.raises(UserError, match=rf"model\.path: builtin:{model}(.|\n)*{what}"):
        prepare_data(config, show_progress=False)


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_documents_are_learnt_with_the_loss_of_transformers(objective: str) -> None:
    words = [f"stage.objective={objective}", "peft=[prompt_tuning]", "seed=5", "data.max_length=64"]
    config = compose_run("smoke_t5_pretrain", words).config
    data = prepare_data(config, show_progress=False)
    display = Display(enabled=False)
    device = torch.device("cpu")
    policy = build_policy(
        config, data, precision=Precision.fp32, device=device, display=display, batches=lambda _: iter(()), starts={}
    ).eval()
    batch = next(first_batches(config, data, policy))
    sentinels = (batch.targets >= len(data.tokenizer) - NUM_SENTINELS).sum()
    assert (sentinels > 0) == (objective == "span_corruption")
    virtual = (batch.input_ids >= FIRST_VIRTUAL).sum(1)
    assert virtual.tolist() == [config.peft["prompt_tuning"].num_virtual_tokens] * len(virtual)
    assert batch.decoder_input_ids.max() < len(data.tokenizer)
    labels = torch.full_like(batch.decoder_input_ids, -100)
    labels.view(-1)[batch.kept] = batch.targets
    with torch.no_grad():
        loss = policy.lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        assert -policy(batch).mean().item() == pytest.approx(loss.item(), abs=1e-5)
    again = next(first_batches(config, data, policy))
    assert torch.equal(batch.input_ids, again.input_ids)


@pytest.mark.slow
def test_soft_prompts_and_prefixes_and_lora_on_a_4_bit_base_with_checkpointing(tmp_path: Path) -> None:
    words = ["peft=[lora,p_tuning,prefix_tuning]", "peft.prefix_tuning.num_virtual_tokens=4"]
    words += ["peft.p_tuning.template='{v3} {prompt} {v2} {completion}'", "model.quantization=nf4"]
    words += ["train.precision=bf16", "model.gradient_checkpointing=true"]
    found = evaluations(trained(tmp_path / "run", *words))
    assert found[1]["eval/loss"] < found[0]["eval/loss"]
    assert main(["merge", str(tmp_path / "run")]) == 2
