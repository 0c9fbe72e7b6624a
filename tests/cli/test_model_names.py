"""What leads nowhere, or would replace what is there, is refused at once: no libraries, no patience with the Hub."""

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
from tunecli.scoring.files import written

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


def test_results_are_replaced_only_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main([*words]) == 2
        return capsys.readouterr().err

    file = tmp_path / "result.json"
    file.write_text("{}")
    assert "is a folder" in refused("predict", "nope", "x.jsonl", "--out", str(tmp_path))
    assert "exists already" in refused("predict", "nope", "x.jsonl", "--out", str(file))
    assert "no folder nope" in refused("predict", "nope", "x.jsonl", "--out", str(file), "--force")
    assert "holds results already: result.json" in refused("eval", "nope", "--out", str(tmp_path))
    assert "is a file" in refused("eval", "nope", "--out", str(file))
    assert "no folder nope" in refused("eval", "nope", "--out", str(tmp_path), "--force")
    assert "no folder nope" in refused("eval", "nope", "--out", str(tmp_path / "new"))


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written(tmp_path / "o.jsonl") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
