"""Merged = unmerged, in every dtype and from every base; what cannot be merged is refused and leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging import finished_run
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunecli
from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.config.model import DType
from tunecli.config.paths import cache_dir
from tunecli.merge import MergeRefused, logits, merge
from tunecli.models.builtin import materialize

IDS = [torch.randint(4, 200, (17,), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("lora") / "run")


def plain(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def of_run(folder: Path) -> Tensor:
    """Logits that `tunecli.load` gives of a run directory or a folder."""
    return logits(tunecli.load(folder)[0], IDS)[0]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(plain(folder).named_parameters())


def test_merged_weights_give_the_unmerged_logits_in_plain_transformers(run: Path, tmp_path: Path) -> None:
    merged = merge([run], tmp_path / "m")
    assert_close(logits(plain(tmp_path / "m"), IDS)[0], of_run(run), atol=1e-5, rtol=0)
    assert_close(of_run(tmp_path / "m"), of_run(run), atol=1e-5, rtol=0)
    assert merged.difference < 1e-5 and merged.effect is not None and merged.effect > 0.1
    assert merged.compared_on == "4 validation examples"
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template
    assert (tmp_path / "m" / "generation_config.json").is_file()


@pytest.mark.parametrize(("dtype", "bound"), [(DType.bfloat16, 0.02), (DType.float16, 0.002)])
def test_a_smaller_dtype_differs_by_its_rounding(run: Path, tmp_path: Path, dtype: DType, bound: float) -> None:
    merged = merge([run], tmp_path / "m", dtype=dtype)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == dtype.value == merged.dtype
    assert 0 < merged.difference < bound * merged.largest_logit < merged.bound


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_quantised_base_is_dequantised(tmp_path: Path, kind: str) -> None:
    run = finished_run(tmp_path / "run", f"model.quantization={kind}")
    merged = merge([run])
    assert merged.folder == run / "merged" and merged.difference < 1e-5
    assert "quantization_config" not in json.loads((run / "merged" / "config.json").read_text())
    assert (merged.of_activations is not None) == (kind == "int8")
    if kind != "int8":
        assert_close(logits(plain(merged.folder), IDS)[0], of_run(run), atol=1e-5, rtol=0)
    assert f"{kind} in training" in (run / "merged" / "README.md").read_text()


def test_a_bf16_run_stays_bf16_and_each_weight_is_rounded_once(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "model.dtype=bfloat16", dtype=torch.bfloat16)
    assert merge([run]).dtype == "bfloat16"
    fine = weights(merge([run], tmp_path / "fine", dtype=DType.float32).folder)
    for name, parameter in weights(run / "merged").items():
        step = fine[name].abs() * 2**-8  # bf16 keeps 8 bits
        assert ((parameter - fine[name]).abs() <= step + 1e-3).all(), name


@pytest.mark.parametrize("words", [[], ["peft=full"]])
def test_interpolation_runs_from_the_base_to_the_tuned_model(tmp_path: Path, words: list[str]) -> None:
    run = finished_run(tmp_path / "run", *words)
    merge([run], tmp_path / "zero", interpolation=0)
    merge([run], tmp_path / "half", interpolation=0.5)
    base = weights(materialize("tiny_llama"))
    if words:
        tuned = weights(run / "model")
    else:
        merge([run], tmp_path / "one")
        tuned = weights(tmp_path / "one")
    zero, half = weights(tmp_path / "zero"), weights(tmp_path / "half")
    for name in base:
        assert_close(zero[name], base[name], atol=1e-7, rtol=0)
        assert_close(half[name], (base[name] + tuned[name]) / 2, atol=1e-6, rtol=0)


def test_several_adapters_add_up(run: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", seed=2)
    both = merge([run, other / "adapter" / "lora"], tmp_path / "both", base="builtin:tiny_llama").folder
    base = weights(materialize("tiny_llama"))
    one, two = weights(merge([run], tmp_path / "1").folder), weights(merge([other], tmp_path / "2").folder)
    for name, parameter in weights(both).items():
        assert_close(parameter - base[name], one[name] + two[name] - 2 * base[name], atol=1e-5, rtol=0)


def test_a_run_with_two_adapters(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "+peft@peft.second=lora")
    merge([run])
    assert_close(of_run(run / "merged"), of_run(run), atol=1e-5, rtol=0)


def test_a_standard_peft_folder_also_with_tied_head_and_dora(tmp_path: Path) -> None:
    base = plain(materialize("tiny_llama"))
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "lm_head"], use_dora=True, init_lora_weights=False)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    tuned.save_pretrained(tmp_path / "peft")
    expected = logits(tuned.eval(), IDS)[0]
    tunecli.load("builtin:tiny_llama")[1].save_pretrained(tmp_path / "base")
    merged = merge([tmp_path / "peft"], tmp_path / "m")
    assert merged.compared_on == "4 random sequences"
    assert_close(logits(plain(tmp_path / "m"), IDS)[0], expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="only plain LoRA"):
        merge([tmp_path / "peft"], tmp_path / "half", interpolation=0.5)


def test_shards(run: Path, tmp_path: Path) -> None:
    merged = merge([run], tmp_path / "m", max_shard_size="100KB")
    assert merged.files > 1 and (tmp_path / "m" / "model.safetensors.index.json").is_file()
    assert_close(of_run(tmp_path / "m"), of_run(run), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("broken", "said"), [("layers", "merging (.*)_proj gives another layer"), ("file", "logits differ by up to")]
)
def test_another_model_than_the_unmerged_one_is_refused_and_nothing_is_left(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    said: str,
) -> None:
    if broken == "layers":
        monkeypatch.setattr(LoraLinear, "merge", lambda layer, **_: None)
    else:
        monkeypatch.setattr("tunecli.merge.weights._merge_layers", lambda tuned, **_: None)
        monkeypatch.setattr(PeftModel, "merge_and_unload", lambda tuned, **_: tuned.unload(), raising=False)
    with pytest.raises(MergeRefused, match=said):
        merge([run], tmp_path / "out" / "m")
    assert not list(tmp_path.glob("out/*"))
    assert main(["merge", str(run), str(tmp_path / "out" / "m")]) == 1
    assert "othing was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "arguments", "said"),
    [
        (["peft=full"], {}, "--interpolate 0.5 averages it"),
        ([], {"interpolation": 1.5}, "from 0 (the base) to 1"),
        ([], {"to": "run"}, "is no model folder"),
        ([], {"to": "run", "force": True}, "is no model folder"),
        ([], {"to": "run/config.yaml/x"}, "cannot be made: Not a directory"),
    ],
)
def test_refusals(tmp_path: Path, words: list[str], arguments: dict, said: str) -> None:
    run = finished_run(tmp_path / "run", *words)
    before = sorted(run.rglob("*"))
    if "to" in arguments:
        arguments = arguments | {"to": tmp_path / arguments["to"]}
    with pytest.raises(UserError) as refused:
        merge([run], **arguments)
    assert said in str(refused.value) and refused.value.exit_status == 2
    assert sorted(run.rglob("*")) == before


def test_what_is_no_run_and_adapters_of_other_bases(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory, adapter or model"):
        merge([tmp_path])
    other = finished_run(tmp_path / "other", "model=tiny_qwen3")
    with pytest.raises(UserError, match="is an adapter for builtin:tiny_qwen3"):
        merge([run, other])


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(run / "merged") and told["difference"] <= told["bound"]
    assert main(["merge", str(run), "--force"]) == 0
    assert "difference" in capsys.readouterr().out
    assert main(["merge", str(run)]) == 2


def test_the_builtin_base_is_left_as_it_was(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in materialize("tiny_llama").iterdir()}
    merge([run], tmp_path / "m")
    assert before == {path: path.read_bytes() for path in materialize("tiny_llama").iterdir()}
    assert str(cache_dir()) not in (tmp_path / "m" / "README.md").read_text()


def test_a_merged_model_is_replaced_only_by_force(run: Path, tmp_path: Path) -> None:
    merge([run], tmp_path / "m")
    with pytest.raises(UserError, match="is there already(.|\n)*--force"):
        merge([run], tmp_path / "m")
    assert merge([run], tmp_path / "m", dtype=DType.bfloat16, force=True).dtype == "bfloat16"


@pytest.mark.parametrize("size", ["0", "0GB", "5", "x"])
def test_sizes_that_are_none(run: Path, size: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(run), "m", "--max-shard-size", size])
    assert ended.value.code == 2
