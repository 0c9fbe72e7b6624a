"""Names of models and runs that lead nowhere are refused at once: no libraries, no patience with a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.engine import hub_name

NOT_FOUND = SimpleNamespace(headers={}, request=None)


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    hub_name._not_on_hub.cache_clear()


def hub_says(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def model_info(self: object, name: str, timeout: float) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "./wrong/path"],
        ["eval", "nope", "data.path=x.jsonl"],
        ["eval", "nope", "harness=x"],
        ["chat", "--prompt", "hi", "a/b/c"],
        ["chat", "--prompt", "hi", "nope"],
        ["predict", "nope", "x.jsonl"],
    ],
    ids=" ".join,
)
def test_a_wrong_name_is_refused_before_torch_is_loaded(words: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys\nfrom tunecli.cli import main\nstatus = main({words!r})\n"
        "sys.exit('loaded torch' if 'torch' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: there is no folder ") and len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OSError("no network"), "cannot be asked"),
        (
            RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None)),
            "has no model of that name",
        ),
    ],
)
def test_a_name_without_owner_has_to_be_on_the_hub(monkeypatch, answer: Exception, said: str) -> None:
    hub_says(monkeypatch, answer)
    with pytest.raises(UserError, match=f"no folder nope here, and the Hub.* {said}"):
        hub_name.refuse_missing("nope")


def test_what_the_hub_or_its_cache_has_is_left_to_loading(monkeypatch, tmp_path: Path) -> None:
    hub_says(monkeypatch, None)
    hub_name.refuse_missing("gpt2")
    hub_says(monkeypatch, OSError("no network"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--old_model" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--old_model" / "snapshots" / "abc" / "config.json").touch()
    hub_name.refuse_missing("old_model")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outputs/x"], "no file with rows is named\n  fix: tune predict outputs/x FILE"),
        (["rows.jsonl"], "no run or model is named\n  fix: tune predict RUN rows.jsonl"),
        (["a", "b", "c"], "3 paths are named"),
    ],
)
def test_predict_says_what_is_missing(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *words]) == 2
    assert said in capsys.readouterr().err
