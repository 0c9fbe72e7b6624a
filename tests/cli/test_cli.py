"""The `tune` command as a person meets it: what it prints, what it exits with, what it loads to do so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunecli import cli, launch
from tunecli.cli import check, main
from tunecli.config.compose import compose_run, load_config
from tunecli.config.paths import GROUPS, option_names, recipe_names


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["--version"],
        ["ls"],
        ["ls", "peft", "--json"],
        ["run", "--help"],
        ["__complete", "run", "train."],
    ],
    ids=" ".join,
)
def test_help_and_listings_load_neither_torch_nor_hydra(words: list[str]):
    code = (
        "import sys\nfrom tunecli.cli import main\n"
        f"try:\n    status = main({words!r})\nexcept SystemExit as stop:\n    status = stop.code\n"
        "heavy = {'torch', 'hydra', 'transformers', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "complete", "words"}
    assert modules == set(cli.VERBS)
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "tunecli", "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean run?" in done.stderr


def test_a_wrong_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert "did you mean resume?" in refused(capsys, "resme")


@pytest.mark.parametrize("verb", ["run", "show", "check"])
def test_without_a_recipe_the_message_says_what_to_type(verb: str, capsys: pytest.CaptureFixture[str]):
    assert f"tune {verb} recipe=NAME" in refused(capsys, verb)
    assert "did you mean recipe=smoke_qlora?" in refused(capsys, verb, "smoke_qlora")
    assert "several recipes" in refused(capsys, verb, "recipe=a", "recipe=b")


def test_run_and_resume_hand_over_to_the_launcher(monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []
    monkeypatch.setattr(launch, "run", lambda *args, **kwargs: calls.append((args, kwargs)) or 7)
    monkeypatch.setattr(launch, "resume", lambda *args, **kwargs: calls.append((args, kwargs)) or 8)
    assert main(["run", "seed=1", "recipe=x", "--dry-run", "+peft@peft.second=lora"]) == 7
    assert main(["resume", "out/x", "train.max_steps=9", "--detach"]) == 8
    assert calls == [
        (("x", ["seed=1", "+peft@peft.second=lora"]), {"dry_run": True, "detach": False}),
        ((Path("out/x"), ["train.max_steps=9"]), {"detach": True}),
    ]


def test_only_mistakes_of_the_user_lose_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(launch, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run", "recipe=x"])


def test_errors_are_red_on_a_terminal_that_wants_colours(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["rnu"])
    assert "\033[1;31merror:" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    main(["rnu"])
    assert "\033" not in capsys.readouterr().err


def test_ls_lists_everything(capsys: pytest.CaptureFixture[str]):
    for what, names in {"recipes": recipe_names(), **{group: option_names(group) for group in GROUPS}}.items():
        main(["ls", what, "--json"])
        rows = json.loads(capsys.readouterr().out)
        assert sorted(row["name"] for row in rows) == names
        assert all(Path(row["file"]).is_file() and row["summary"] for row in rows)
        main(["ls", what])
        text = capsys.readouterr().out
        assert all(f"{row['name']} " in text for row in rows)
        assert what == "peft" or all(row["summary"] in text for row in rows)
    assert "did you mean model?" in refused(capsys, "ls", "modle")


def test_show_prints_what_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["recipe=sft_lora_smollm2", "peft=full", "seed=3"]
    assert main(["show", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("note: ") and "peft.lora.r" in printed.err
    (tmp_path / "config.yaml").write_text(printed.out)
    config = load_config(tmp_path / "config.yaml")
    assert config == compose_run("sft_lora_smollm2", words[1:]).config
    assert main(["show", str(tmp_path)]) == 0  # a run directory
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed.out)
    assert main(["show", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(printed.out)


def test_show_origin_puts_each_value_beside_what_set_it(capsys: pytest.CaptureFixture[str]):
    assert main(["show", "recipe=smoke_sft_lora", "--origin", "seed=3"]) == 0
    lines = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["seed"].split("#")[0].strip() == "seed: 3" and lines["seed"].endswith("# command line")
    assert "smoke_sft_lora.yaml:" in lines["train.max_steps"]


def test_show_of_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "not a run directory" in refused(capsys, "show", str(tmp_path))


def test_cp_makes_files_that_compose(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["smoke_sft_lora"],
        ["smoke_sft_full", "mine.yaml"],
        ["peft/lora", "peft/big.yaml"],
        ["model/tiny_gpt2"],
    ):
        assert main(["cp", *words]) == 0
        assert "next: tune " in capsys.readouterr().out
    assert compose_run("./smoke_sft_lora.yaml", []).config == compose_run("smoke_sft_lora", []).config
    (tmp_path / "peft" / "big.yaml").open("a").write("r: 99\n")
    config = compose_run("./mine.yaml", ["peft=[big,lora]"]).config
    assert {name: method.r for name, method in config.peft.items()} == {"big": 99, "lora": 16}


def test_cp_keeps_what_is_there_unless_forced(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("precious")
    assert "--force" in refused(capsys, "cp", "smoke_qlora", "mine.yaml")
    assert Path("mine.yaml").read_text() == "precious"
    assert main(["cp", "smoke_qlora", "mine.yaml", "--force"]) == 0
    assert "nf4" in Path("mine.yaml").read_text()


def test_cp_refuses_what_could_not_be_used(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert "did you mean smoke_qlora?" in refused(capsys, "cp", "smoke_qlor")
    assert "peft/mine.yaml" in refused(capsys, "cp", "peft/lora", "mine.yaml")
    assert "mine.yaml" in refused(capsys, "cp", "smoke_qlora", "mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "batch"),
    [
        (["train.micro_batch_size=4"], "16 examples per step = 1 process x 4 micro-batches of up to 4 examples"),
        (
            ["train.micro_batch_size=3", "launch=cpu_2"],
            "16 examples per step = 2 processes x 3 micro-batches of up to 3",
        ),
        (
            ["train.micro_batch_tokens=999"],
            "16 examples per step = 1 process x 16 examples, in micro-batches of up to 999",
        ),
    ],
)
def test_check_prints_what_follows(overrides: list[str], batch: str, capsys: pytest.CaptureFixture[str]):
    words = ["check", "recipe=smoke_sft_lora", "launch=cpu", "train.global_batch_size=16", *overrides]
    words = [word for word in words if word != "launch=cpu" or "launch=cpu_2" not in overrides]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert batch in text and "no problems found" in text


def test_check_reports_all_problems(capsys: pytest.CaptureFixture[str]):
    error = refused(capsys, "check", "recipe=smoke_sft_lora", "data.format=nope", "train.warmup_steps=99")
    assert "data.format" in error and "train.warmup_steps" in error and error.count("fix:") == 2


def test_env_says_what_bug_reports_need(capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--json"]) == 0
    environment = json.loads(capsys.readouterr().out)
    assert environment["packages"]["torch"] and environment["hardware"]["cores"]
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert f"torch: {environment['packages']['torch']}" in text and "gpus: " in text and "cpu_computes_bf16: " in text


def test_ctrl_c_ends_a_verb_with_one_line_also_where_a_library_makes_something_else_of_it(monkeypatch, capsys):
    def interrupted(words: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("while a library cleans up")

    monkeypatch.setattr("tunecli.cli._dispatch", interrupted)
    assert main(["check", "recipe=smoke_sft_lora"]) == 130
    assert capsys.readouterr().err == "\ntune check: interrupted\n"


def test_ctrl_c_while_the_command_is_imported_ends_it_with_one_line():
    code = (
        "import runpy, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tunecli.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "runpy.run_module('tunecli', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\ntune: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_a_run_can_save_ends_it_with_one_line(number: signal.Signals, tmp_path: Path):
    """As `launch` does it: blocked until the worker is there to take it up."""
    code = (
        "import os, signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\n"
        f"os.kill(os.getpid(), {number})\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'tunecli.worker', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    (line,) = done.stderr.split("\n")[1:-1]
    assert "nothing was saved" in line and "tune resume" in line and "starts it again" in line
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


def test_full_fine_tuning_is_said_in_words():
    found = check.derived(compose_run("smoke_sft_lora", ["peft=[]"]).config)
    assert found["trains"] == "every weight (full fine-tuning)"


def test_a_word_behind_ls_peft_that_is_no_recipe_is_explained(capsys: pytest.CaptureFixture[str]):
    assert "fix: tune ls peft recipe=NAME counts" in refused(capsys, "ls", "peft", "foo")
    assert "fix: tune ls peft recipe=smoke_qlora counts" in refused(capsys, "ls", "peft", "smoke_qlora")


def test_the_head_is_trained_too():
    assert check.derived(compose_run("smoke_classify", []).config)["trains"] == "lora, head"
