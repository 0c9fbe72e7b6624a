"""What arrives at a stand-in for the Hub, what is asked before, and what is never sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from merging import finished_run

from tunecli.config.errors import UserError
from tunecli.push import clean, prepare


class Hub(ThreadingHTTPServer):
    """Enough of the Hub's API to create a repository and commit to it, large files through LFS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict] = []
        self.branches: list[str] = []
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[tuple[str, str]] = []
        """revision, message"""
        self.exists = False
        self.create_status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, value: object, status: int = 200, error: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer good"
            self.reply({"name": "me", "type": "user"} if known else {"error": "no"}, 200 if known else 401)
        elif self.server.exists:
            self.reply({"id": "me/x", "private": True, "siblings": [], "tags": [], "downloads": 0, "likes": 0})
        else:
            self.reply({"error": "Repository not found"}, 404, "RepoNotFound")

    def do_PUT(self) -> None:
        self.server.blobs[self.path.removeprefix("/blob/")] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        server, body = self.server, self.body()
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            status = server.create_status
            self.reply({"url": f"{server.url}/me/x"} if status == 200 else {"error": "no"}, status)
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/branch/" in self.path:
            server.branches.append(self.path.rsplit("/", 1)[1])
            self.reply({})
        elif "/preupload/" in self.path:
            modes = {True: {"uploadMode": "lfs"}, False: {"uploadMode": "regular"}}
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "shouldIgnore": False} | modes[path.endswith(".safetensors")] for path in paths]
            self.reply({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{server.url}/blob/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.reply({"error": self.path}, 400)

    def commit(self, lines: list[dict]) -> None:
        server = self.server
        server.commits.append((self.path.rsplit("/", 1)[1].partition("?")[0], lines[0]["value"]["summary"]))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                content = server.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                content = base64.b64decode(value["content"])
            server.files[value["path"]] = content
        self.reply({"commitUrl": f"{server.url}/me/x/commit/{'0' * 40}", "commitOid": "0" * 40})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("push") / "run", "data.validation=null")


def push(hub: Hub | str, *words: object, token: str = "good", **variables: str) -> subprocess.CompletedProcess[str]:
    """`tune push` as a process that knows the stand-in only, without a terminal."""
    url = hub if isinstance(hub, str) else hub.url
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"} | variables
    return subprocess.run(
        [sys.executable, "-m", "tunecli", "push", *map(str, words)],
        capture_output=True, text=True, env=environment, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_result_arrives_and_nothing_else(hub: Hub, run: Path) -> None:
    done = push(hub, run, "me/x", "--yes", "--license", "mit", "--base", "you/base", "--message", "first")
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {
        *("README.md", "tunecli.yaml", "adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert hub.created == [{"name": "x", "organization": "me", "visibility": "private"}]
    assert hub.commits == [("main", "first")] and hub.url in done.stdout
    weights = run / "adapter" / "lora" / "adapter_model.safetensors"
    assert hub.files["adapter_model.safetensors"] == weights.read_bytes()
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "you/base"
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("mit", "you/base") and 'path = "me/x"' in card.text
    for name, content in hub.files.items():
        assert str(run.parent).encode() not in content, name
    assert yaml.safe_load(hub.files["tunecli.yaml"])["output_dir"] is None


def test_a_branch_of_a_public_repository(hub: Hub, run: Path) -> None:
    done = push(hub, run, "me/x", "--yes", "--public", "--revision", "try")
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["visibility"] == "public" and hub.branches == ["try"] and hub.commits[0][0] == "try"
    assert "PUBLIC" in done.stdout


def test_without_a_terminal_or_yes_nothing_is_sent(hub: Hub, run: Path) -> None:
    done = push(hub, run, "me/x")
    assert done.returncode == 2 and "--yes" in done.stderr
    assert not hub.created and not hub.files


def test_a_dry_run_needs_no_network(run: Path) -> None:
    done = push("http://127.0.0.1:9", run, "me/x", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    for wanted in ("me/x", "private", "adapter_model.safetensors", "together", "nothing was uploaded"):
        assert wanted in done.stdout


def test_an_existing_repository_needs_update(hub: Hub, run: Path) -> None:
    hub.exists = True
    taken = push(hub, run, "me/x", "--yes")
    assert taken.returncode == 2 and "name is taken" in taken.stderr and not hub.files
    done = push(hub, run, "me/x", "--yes", "--update")
    assert done.returncode == 0, done.stderr
    assert not hub.created and hub.files


@pytest.mark.parametrize(
    ("token", "variables", "status", "said"),
    [
        ("", {}, 200, "you are not logged in"),
        ("bad", {}, 200, "does not know your token"),
        ("good", {}, 403, "may not write there"),
        ("good", {}, 409, "name is taken"),
        ("good", {"HF_ENDPOINT": "http://127.0.0.1:9"}, 200, "cannot be reached"),
        ("good", {"HF_HUB_OFFLINE": "1"}, 200, "cannot be reached"),
    ],
)
def test_one_clear_message(
    hub: Hub, run: Path, tmp_path: Path, token: str, variables: dict[str, str], status: int, said: str
) -> None:
    hub.create_status = status
    done = push(hub, run, "me/x", "--yes", token=token, **{"HF_HOME": str(tmp_path)} | variables)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr and not hub.files


def names(path: Path) -> set[str]:
    return {file.name for file in prepare(path, "me/x").files}


def test_a_full_run_a_peft_folder_and_two_adapters(tmp_path: Path, run: Path) -> None:
    full = finished_run(tmp_path / "full", "peft=full", "data.validation=null")
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md"} <= names(full)
    assert {"adapter_model.safetensors", "README.md"} <= names(run / "adapter" / "lora")
    two = finished_run(tmp_path / "two", "+peft@peft.second=lora", "data.validation=null")
    assert {"lora/adapter_model.safetensors", "second/adapter_config.json", "tokenizer.json"} <= names(two)
    assert "composition.json" in names(two)  # their order
    assert not [name for name in names(two) | names(full) if "checkpoint" in name or "optimizer" in name]


def test_an_adapter_of_a_run_has_its_tokenizer(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "data.validation=null")
    inner = names(run / "adapter" / "lora")
    assert {"adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= inner
    (run / "config.yaml").unlink()
    assert "tokenizer.json" not in names(run / "adapter" / "lora")  # somebody's folder above is none of ours


@pytest.mark.parametrize(("base", "noted"), [("SmolLM2-135M-Instruct", True), ("you/base", False)])
def test_the_base_of_merged_weights_is_told_by_their_card(tmp_path: Path, base: str, noted: bool) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "README.md").write_text(f"---\nbase_model: {base}\nlicense: mit\n---\n# Merged\n")
    upload = prepare(tmp_path, "me/x")
    assert any("no Hub id" in note for note in upload.notes) is noted
    card = ModelCard(next(file.content for file in upload.files if file.name == "README.md").decode())
    assert card.data.base_model == (None if noted else base)


@pytest.mark.parametrize(("repo", "said"), [("x", "whose it is"), ("a/b/c", "a/b/c"), ("me/..x", "me/..x")])
def test_repository_names(run: Path, repo: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(run, repo)


def test_a_text_that_names_this_machine_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "data.validation=null")
    with (run / "README.md").open("a") as file:
        file.write(f"\nsee {run}/notes\n")
    with pytest.raises(UserError, match=r"README\.md: names a folder of this machine"):
        prepare(run, "me/x")


def test_paths_lose_their_folders_and_other_texts_stay() -> None:
    before = {"a": ["/home/me/x.jsonl", "me/base"], "b": "~/a/b", "c": "/no_think", "d": "See /a/b", "e": 3}
    assert clean(before) == {"a": ["x.jsonl", "me/base"], "b": "b", "c": "/no_think", "d": "See /a/b", "e": 3}


def test_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no result"):
        prepare(tmp_path, "me/x")
