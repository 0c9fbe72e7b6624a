"""`tune push`: a result on the Hugging Face Hub, and nothing else of the run.

What is uploaded is a list of files known by name (weights, tokenizer, configuration, card), never a folder, so that
checkpoints, optimizer states, logs and data cannot slip in. Texts are published as cleaned copies: of a path on this
machine only the last part is left, and a copy in which the home or the run's folder is still named is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from tunecli.config.begun import no_result
from tunecli.config.compose import load_config
from tunecli.config.data_files import is_local
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig, to_yaml
from tunecli.engine.text import visible
from tunecli.report.card import NAME as CARD
from tunecli.report.card import Result, bare_card, for_hub, result_kind
from tunecli.report.card_use import Made, made_by, made_of

CONFIG = "tunecli.yaml"
"""What config.yaml is called on the Hub: a download with a file of that name would be taken for a run directory."""
COMPOSITION = "composition.json"
"""Beside the folders of several adapters: their order."""
WEIGHTS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors")
TEXTS = re.compile(
    r"(adapter_|generation_)?config\.json|composition\.json|model\.safetensors\.index\.json|tokenizer(_config)?\.json|vocab\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja|LICENSE(\.\w+)?|NOTICE(\.\w+)?"
)
BINARY_TOKENIZERS = re.compile(r"[\w.-]+\.model|[\w.-]+\.tiktoken")
PATH = re.compile(r"(/|~/|[A-Za-z]:[\\/])[^\n]*[\\/][^\n]*")
"""A text that is nothing but a path on somebody's disk, two folders deep at least."""


@dataclass(frozen=True, slots=True)
class File:
    name: str
    """in the repository"""
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Upload:
    repo: str
    files: list[File]
    private: bool
    revision: str | None
    message: str
    notes: list[str]
    """what the user should know before saying yes"""


@dataclass(frozen=True, slots=True)
class _Found:
    """A result on this disk."""

    kind: Result
    folders: dict[str, Path]
    """folder in the repository ("" is its root) -> folder here"""
    card: Path
    config: Path | None
    base: str | None
    """as it is named here: a Hub id or a path"""


def prepare(
    path: Path,
    repo: str,
    *,
    public: bool = False,
    license: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> Upload:
    """Collect what would be published. Reads this disk alone.

    Args:
        path: a run directory, `merged/` in one, a peft folder or a model folder.
        base: Hub id of the base model, for one that lies on this disk.

    Raises:
        UserError: a bad repository name, no result, or a text that still names this machine's folders.
    """
    _check_repo(repo)
    found = _find(path.expanduser().resolve())
    base_id = base or (found.base if found.base and _is_hub_id(found.base) else None)
    made = _made(found)
    local_card = found.card.read_text(encoding="utf-8") if found.card.is_file() else bare_card(made, found.base)
    card = for_hub(local_card, made, repo, license=license, base=base_id)
    files = [File(CARD, card.encode())]
    if found.config is not None:
        files.append(File(CONFIG, _clean_config(load_config(found.config), base_id)))
    for prefix, folder in found.folders.items():
        files += _files(folder, prefix, base_id)
    if found.kind is not Result.adapters:
        files = [file for file in files if file.name != COMPOSITION]  # the order of one
    _check_leaks(files, path)
    notes = []
    if base_id is None and found.base:
        notes.append("the base model has no Hub id that is known here; --base OWNER/NAME names it in the card")
    if license is None and "\nlicense:" not in card:
        notes.append("no licence is named; --license ID does (the base model's licence applies in any case)")
    return Upload(repo, files, not public, revision, message or f"Upload {found.kind.value} with tunecli", notes)


def check_hub(upload: Upload, *, update: bool, api: HfApi) -> None:
    """That we are logged in, and that the repository is as new, or as old, as the user thinks.

    Raises:
        UserError: not logged in, no network, or the name is taken.
    """
    with _readable(upload):
        api.whoami()
        try:
            api.repo_info(upload.repo)
        except RepositoryNotFoundError:
            if update:
                raise UserError(f"there is no {upload.repo} to update", fix="leave out --update") from None
            return
    if not update:
        fix = "--update adds a commit to it; or choose another name"
        raise UserError("the name is taken: there is a repository already", where=upload.repo, fix=fix)


def publish(upload: Upload, *, update: bool, api: HfApi) -> str:
    """Create the repository unless `update`, commit all files at once, and return the address of the repository.

    Raises:
        UserError: one clear message for whatever the Hub says no to.
    """
    operations = [
        CommitOperationAdd(file.name, str(file.content) if isinstance(file.content, Path) else file.content)
        for file in upload.files
    ]
    with _readable(upload):
        if not update:
            api.create_repo(upload.repo, private=upload.private)
        if upload.revision:
            api.create_branch(upload.repo, branch=upload.revision, exist_ok=True)
        api.create_commit(upload.repo, operations, commit_message=upload.message, revision=upload.revision)
    return f"{api.endpoint}/{upload.repo}"


def as_text(upload: Upload, *, update: bool) -> str:
    """What is about to be uploaded where, for a person to agree to."""
    visibility = "private" if upload.private else "PUBLIC: everybody can see it"
    branch = f", branch {upload.revision}" if upload.revision else ""
    width = max(len(file.name) for file in upload.files)
    sizes = [(file.name, file.size) for file in upload.files]
    return "\n".join(
        (
            f"repository   {upload.repo}{branch}{' (exists, a commit is added)' if update else ''}",
            f"visibility   {'as it is there' if update else visibility}",
            f"message      {visible(upload.message)}",
            *(
                f"  {name:<{width}}  {_size(size):>9}"
                for name, size in [*sizes, ("together", sum(dict(sizes).values()))]
            ),
            *(f"note: {note}" for note in upload.notes),
        )
    )


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"


class _readable:  # noqa: N801 - reads as a statement: `with _readable(upload):`
    """Turns what the Hub client raises into one message for the user."""

    def __init__(self, upload: Upload) -> None:
        self.repo = upload.repo

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        if message := _explained(error, self.repo):
            raise message from error


def _explained(error: Exception, repo: str) -> UserError | None:
    login = "hf auth login, with a token that may write; or set HF_TOKEN"
    if isinstance(error, LocalTokenNotFoundError):
        return UserError("you are not logged in to the Hub", fix=login)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return UserError("the Hub does not know your token", fix=login)
        if status == 403:
            return UserError(
                "you may not write there", where=repo, fix="your own name before the slash, or another token"
            )
        if status == 409:
            return UserError("the name is taken", where=repo, fix="choose another name, or --update")
        return UserError(f"the Hub says: {_first_line(error)}", where=repo, fix="try again later")
    if isinstance(error, HTTPError | ConnectionError):
        what = f"the Hub cannot be reached: {_first_line(error)}"
        return UserError(what, fix="check your network, HF_HUB_OFFLINE and HF_ENDPOINT; nothing else is wrong")
    if isinstance(error, ValueError) and "metadata" in str(error):
        return UserError(f"the Hub refuses the card: {' '.join(str(error).split())}", where=CARD, fix="edit its head")
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(str(error).splitlines()[0], where=repo, fix="OWNER/NAME") from error
    if "/" not in repo:
        raise UserError("does not say whose it is", where=repo, fix=f"OWNER/{repo}, with your name on the Hub")


def _find(path: Path) -> _Found:
    if (path / "config.yaml").is_file():
        return _of_run(path)
    config = path.parent / "config.yaml"
    known = config if config.is_file() else None
    if (path / "config.json").is_file():
        base = load_config(known).model.path if known else _base_of_card(path / CARD)
        return _Found(Result.model, {"": path}, path / CARD, known, base)
    if (path / "adapter_config.json").is_file():
        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        of_run = path.parent.name == "adapter" and (path.parents[1] / "config.yaml").is_file()
        tokenizer = {".": path.parent} if of_run else {}  # lies there once for all adapters of the run
        return _Found(Result.adapter, {"": path} | tokenizer, path / CARD, None, base)
    raise UserError("holds no result that could be published", where=str(path), fix="a run directory, or its merged/")


def _made(found: _Found) -> Made:
    folder = found.folders[""]
    if (
        found.config is None
        and folder.parent.name == "adapter"
        and (run := folder.parents[1] / "config.yaml").is_file()
    ):
        made = made_by(load_config(run), run.parent, found.kind)  # of one of the run's adapters
        return replace(made, methods={folder.name: made.methods[folder.name]}, column=None)
    if found.config is None:
        return made_of(folder, found.kind)
    return made_by(load_config(found.config), found.config.parent, found.kind)


def _base_of_card(file: Path) -> str | None:
    """What the card of a folder that is in no run names: a Hub id; or a path again, of which `card.public` left the
    last part."""
    base = ModelCard.load(file, ignore_metadata_errors=True).data.base_model if file.is_file() else None
    if not isinstance(base, str):
        return None
    return base if "/" in base else f"./{base}"


def _of_run(run_dir: Path) -> _Found:
    config = load_config(run_dir / "config.yaml")
    kind = result_kind(config)
    result = run_dir / ("adapter" if config.peft else "model")
    if not result.is_dir():
        raise no_result(run_dir, config)
    folders = {"": result}
    if kind is Result.adapter:
        folders["."] = result / next(iter(config.peft))
    elif kind is Result.adapters:
        folders |= {name: result / name for name in config.peft}
    return _Found(kind, folders, run_dir / CARD, run_dir / "config.yaml", config.model.path)


def _files(folder: Path, prefix: str, base: str | None) -> Iterator[File]:
    """What is published of a folder: known names only, each text as a cleaned copy."""
    for path in sorted(folder.iterdir()):
        name = f"{prefix}/{path.name}".removeprefix("./").removeprefix("/")
        if not path.is_file():
            continue
        if WEIGHTS.fullmatch(path.name) or BINARY_TOKENIZERS.fullmatch(path.name):
            yield File(name, path)
        elif TEXTS.fullmatch(path.name):
            yield File(name, _clean_text(path, base))


def _clean_text(path: Path, base: str | None) -> bytes:
    """tokenizer.json and vocabularies are taken as they are: they hold tokens, some of which look like paths."""
    if path.suffix != ".json" or path.name in ("tokenizer.json", "vocab.json"):
        return path.read_bytes()
    values = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "adapter_config.json" and base is not None:
        values["base_model_name_or_path"] = base
    return (json.dumps(clean(values), indent=2, ensure_ascii=False) + "\n").encode()


def _clean_config(config: RunConfig, base: str | None) -> bytes:
    values = clean(yaml.safe_load(to_yaml(config)))
    values["output_dir"] = None
    if base is not None:
        values["model"]["path"] = base
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def clean(value: Any) -> Any:
    """`value` with the last part alone of every text that is a path on this disk."""
    if isinstance(value, dict):
        return {key: clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [clean(each) for each in value]
    if isinstance(value, str) and PATH.fullmatch(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _check_leaks(files: list[File], path: Path) -> None:
    """That no text names the folder of the run or the user's home."""
    folders = {path.expanduser().resolve(), Path.home(), Path.cwd()}
    secrets = sorted(str(folder) for folder in folders if len(folder.parts) > 2)
    for file in files:
        if isinstance(file.content, Path) or file.name.endswith(("tokenizer.json", "vocab.json", "merges.txt")):
            continue
        for secret in secrets:
            if secret.encode() in file.content:
                raise UserError(
                    f"names a folder of this machine: {secret}", where=file.name, fix="take it out of that file"
                )


def _is_hub_id(path: str) -> bool:
    return not path.startswith("builtin:") and not is_local(path) and path.count("/") <= 1
