"""Whole runs through the real command: what they write, what they refuse, and that the result is what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tunecli
from tunecli.assembly.data import prepare_data
from tunecli.config.compose import load_config
from tunecli.config.errors import UserError
from tunecli.config.run_lock import lock_run
from tunecli.data.batching import collate
from tunecli.launch import visible_gpus
from tunecli.models.policy import Policy


def tune(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunecli", *words], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    done = tune("run", "recipe=smoke_sft_lora", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "smoke_sft_lora" / "latest"


def test_a_run_directory_holds_what_the_design_promises(lora_run: Path) -> None:
    names = {path.name for path in lora_run.iterdir()}
    assert {"config.yaml", "overrides.txt", "environment.json", "metrics.jsonl", "log.txt", "README.md"} <= names
    assert {"adapter", "checkpoints", "status.json"} <= names
    adapter = lora_run / "adapter"
    assert (adapter / "lora" / "adapter_model.safetensors").is_file()
    assert (adapter / "tokenizer.json").is_file() and (adapter / "chat_template.jinja").is_file()
    environment = json.loads((lora_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["data"]["train"]["fingerprints"]
    assert load_config(lora_run / "config.yaml").launch.num_processes == 1
    assert not [path for path in lora_run.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_loss_falls(lora_run: Path) -> None:
    evaluations = [line["eval/loss"] for line in lines(lora_run) if "eval/loss" in line]
    assert evaluations[-1] < evaluations[0]


@pytest.mark.parametrize("recipe", ["smoke_sft_full", "smoke_qlora"])
def test_smoke_recipes(tmp_path: Path, recipe: str) -> None:
    done = tune("run", f"recipe={recipe}", f"output_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert loaded_loss(tmp_path / "run") == pytest.approx(lines(tmp_path / "run")[-1]["eval/loss"], abs=1e-4)


def test_loaded_gives_the_loss_that_the_run_measured(lora_run: Path) -> None:
    assert loaded_loss(lora_run) == pytest.approx(lines(lora_run)[-1]["eval/loss"], abs=1e-5)


def loaded_loss(run_dir: Path) -> float:
    """Validation loss of what `tunecli.load` gives, one example at a time, in padded batches of the stock model."""
    lm, tokenizer = tunecli.load(run_dir)
    validation = prepare_data(load_config(run_dir / "config.yaml"), show_progress=False).validation
    assert validation is not None and tokenizer.chat_template
    from tiny import batching

    policy = Policy(lm, packed=False)
    total, weight = 0.0, 0
    with torch.no_grad():
        for i in range(len(validation)):
            logprobs = policy(collate(validation, [i], batching(packed=False)))
            total, weight = total - logprobs.sum().item(), weight + len(logprobs)
    return total / weight


def test_the_65b_recipe_trains_a_tiny_model_with_its_own_optimizer(tmp_path: Path) -> None:
    words = ["model=tiny_llama", "data=smoke", "train.max_steps=3", f"output_dir={tmp_path / 'run'}"]
    done = tune("run", "recipe=qlora_llama65b", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.model.quantization.value, config.train.optimizer.value) == ("nf4", "paged_adamw_32bit")
    assert config.peft["lora"].r == 64
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3]


def test_a_dry_run_writes_nothing_and_shows_commands_and_files(tmp_path: Path) -> None:
    done = tune("run", "recipe=smoke_sft_lora", "launch.num_processes=2", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    for wanted in ("config.yaml", "accelerate.yaml", "accelerate.commands.launch", "tunecli.worker"):
        assert wanted in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_row_ends_with_status_2_and_names_file_and_row(tmp_path: Path, processes: int) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "mine.jsonl").write_text(f"{good}\n{good}\n{{not json\n")
    words = ["data=file", "data.path=mine.jsonl", "train.eval_every=null", f"launch.num_processes={processes}"]
    done = tune("run", "recipe=smoke_sft_lora", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "mine.jsonl row 3" in done.stderr and "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "the run directory is removed again" in done.stderr
    assert list((tmp_path / "outputs" / "smoke_sft_lora").iterdir()) == []


def test_a_folder_that_was_there_before_stays_when_the_run_is_refused(tmp_path: Path) -> None:
    """And says of itself that it never trained anything, and why."""
    words = ["recipe=smoke_sft_lora", "peft.lora.target_modules=[x]", f"output_dir={tmp_path}"]
    done = tune("run", *words, cwd=tmp_path)
    assert done.returncode == 2 and "removed" not in done.stderr
    assert (tmp_path / "config.yaml").is_file()
    with pytest.raises(UserError, match="never trained anything: it ended before its first step .*'x' is no such"):
        tunecli.load(tmp_path)
    again = tune("resume", str(tmp_path), cwd=tmp_path)
    assert again.returncode == 2 and (tmp_path / "config.yaml").is_file()


def test_all_problems_at_once_before_anything_is_written(tmp_path: Path) -> None:
    words = [
        "peft=pfeiffer",
        "peft.pfeiffer.dropout=1",
        "train.micro_batch_size=2",
        "train.micro_batch_tokens=64",
        "train.learning_rate=-1",
    ]
    done = tune("run", "recipe=smoke_sft_lora", *words, cwd=tmp_path)
    assert done.returncode == 2
    for wanted in ("peft.pfeiffer.dropout", "micro_batch_tokens", "train.learning_rate"):
        assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_loss_that_is_not_finite_ends_with_status_1_on_two_processes(tmp_path: Path) -> None:
    words = ["train.learning_rate=1e30", "train.optimizer=sgd", "train.max_grad_norm=0", "train.warmup_steps=0"]
    words += ["launch=cpu", "launch.num_processes=2", f"output_dir={tmp_path / 'run'}"]
    done = tune("run", "recipe=smoke_sft_full", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is not finite" in done.stderr and "Traceback" not in done.stderr
    reports = list((tmp_path / "run").glob("non_finite_step_*.json"))
    assert any("row" in report.read_text() for report in reports)


def test_a_worker_with_another_world_size_than_asked_fails(lora_run: Path, tmp_path: Path) -> None:
    text = (lora_run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("num_processes: 1", "num_processes: 2"))
    done = subprocess.run(
        [sys.executable, "-m", "tunecli.worker", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "launch.num_processes=2" in done.stderr


def test_a_run_is_loaded_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that were typed relative to where the run was started still work elsewhere."""
    import shutil

    from tunecli.models.builtin import materialize

    shutil.copytree(materialize("tiny_llama"), tmp_path / "here" / "base")
    done = tune("run", "recipe=smoke_sft_lora", "model.path=./base", "output_dir=run", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    lm, _ = tunecli.load(tmp_path / "here" / "run")
    assert any("lora_A" in name for name, _ in lm.named_parameters())
    assert "base_model: base\n" in (tmp_path / "here" / "run" / "README.md").read_text()


def test_resume_refuses_what_checkpoints_depend_on_and_leaves_the_run_as_it_was(lora_run: Path) -> None:
    before = {name: (lora_run / name).read_text() for name in ("config.yaml", "overrides.txt", "status.json")}
    words = ["peft.lora.r=8", "train.global_batch_size=8", "data.path=other.jsonl", "train.max_steps=20"]
    done = tune("resume", str(lora_run), *words, cwd=lora_run)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for wanted in ("peft.lora.r cannot change", "train.global_batch_size cannot", "data.path cannot", "new run"):
        assert wanted in done.stderr
    fewer = tune("resume", str(lora_run), "train.max_steps=5", cwd=lora_run)
    assert fewer.returncode == 2 and "10 steps already" in fewer.stderr
    assert before == {name: (lora_run / name).read_text() for name in before}


def test_two_processes_do_not_train_in_one_run_directory(lora_run: Path) -> None:
    with lock_run(lora_run):
        done = tune("resume", str(lora_run), "train.max_steps=20", cwd=lora_run)
    assert done.returncode == 2
    assert "is training in" in done.stderr and "Traceback" not in done.stderr
    lock_run(lora_run).close()


def test_a_run_that_fails_on_its_data_does_not_become_the_latest(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    words = ["data=file", "data.path=bad.jsonl", "train.eval_every=null"]
    assert tune("run", "recipe=smoke_sft_lora", *words, cwd=tmp_path).returncode == 2
    assert not (tmp_path / "outputs" / "smoke_sft_lora" / "latest").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("output_dir=file/x", "output_dir: "),
        ("data.columns.mesages=a", "did you mean messages"),
        ("data.path=file", "cannot read a file without a suffix"),
        ("train.precision=fp16", "fp16 is for GPUs"),
        ("model.path=outputs/nope/x", "outputs/nope/x does not exist"),
        ("model.path=nope", "there is no folder nope here, and the Hub, which"),
    ],
)
def test_mistakes_get_one_message_and_status_2(tmp_path: Path, word: str, said: str) -> None:
    if "fp16" in word and visible_gpus():
        pytest.skip("there is a GPU here")
    (tmp_path / "file").write_text("")
    done = tune("run", "recipe=smoke_sft_lora", word, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_answers_are_generated_in_the_precision_of_training(tmp_path: Path) -> None:
    """Adapters in fp32 on a bf16 base need autocast outside of training too."""
    words = ["train.precision=bf16", "train.max_steps=1", "train.eval_every=1", "evaluation.exact_match=3"]
    words += ["evaluation.choices=[Lima.,Five.]", "evaluation.prompts=[Hello]", f"output_dir={tmp_path / 'run'}"]
    done = tune("run", "recipe=smoke_sft_lora", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluations = [line for line in lines(tmp_path / "run") if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [0, 1]
    assert all({"eval/exact_match", "eval/choice_accuracy", "eval/perplexity"} <= line.keys() for line in evaluations)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0] * 4 + [1] * 4
    assert (tmp_path / "run" / "report.html").is_file()
