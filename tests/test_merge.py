"""Merged = unmerged, in every dtype and from every base; what cannot be merged is refused and leaves nothing."""

from __future__ import annotations

import json
import shutil
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
from tests.peft_methods.test_grid import SMALL
from tunecli.cli import main
from tunecli.config.errors import UserError
from tunecli.config.model import DType
from tunecli.config.paths import cache_dir
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.peft_facts import FACTS
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


def weights_in(folder: Path) -> dict[str, Tensor]:
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
    fine = weights_in(merge([run], tmp_path / "fine", dtype=DType.float32).folder)
    for name, parameter in weights_in(run / "merged").items():
        step = fine[name].abs() * 2**-8  # bf16 keeps 8 bits
        assert ((parameter - fine[name]).abs() <= step + 1e-3).all(), name


@pytest.mark.parametrize("words", [[], ["peft=full"]])
def test_interpolation_runs_from_the_base_to_the_tuned_model(tmp_path: Path, words: list[str]) -> None:
    run = finished_run(tmp_path / "run", *words)
    merge([run], tmp_path / "zero", interpolation=0)
    merge([run], tmp_path / "half", interpolation=0.5)
    base = weights_in(materialize("tiny_llama"))
    if words:
        tuned = weights_in(run / "model")
    else:
        merge([run], tmp_path / "one")
        tuned = weights_in(tmp_path / "one")
    zero, half = weights_in(tmp_path / "zero"), weights_in(tmp_path / "half")
    for name in base:
        assert_close(zero[name], base[name], atol=1e-7, rtol=0)
        assert_close(half[name], (base[name] + tuned[name]) / 2, atol=1e-6, rtol=0)


def test_several_adapters_add_up(run: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", seed=2)
    both = merge([run, other / "adapter" / "lora"], tmp_path / "both", base="builtin:tiny_llama").folder
    base = weights_in(materialize("tiny_llama"))
    one, two = weights_in(merge([run], tmp_path / "1").folder), weights_in(merge([other], tmp_path / "2").folder)
    for name, parameter in weights_in(both).items():
        assert_close(parameter - base[name], one[name] + two[name] - 2 * base[name], atol=1e-5, rtol=0)


def deltas(model: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value - base[name] for name, value in model.items()}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another rank, other layers, and other ranks in some of them."""
    words = ["peft.lora.r=6", "peft.lora.target_modules=[q_proj,down_proj]", "peft.lora.rank_pattern={q_proj: 9}"]
    return finished_run(tmp_path_factory.mktemp("other") / "run", *words, seed=2)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, -1), (0, 2.5)])
def test_weights_multiply_the_updates(run: Path, other: Path, tmp_path: Path, weights: tuple[float, float]) -> None:
    base = weights_in(materialize("tiny_llama"))
    one, two = (deltas(weights_in(merge([each], tmp_path / each.parent.name).folder), base) for each in (run, other))
    merged = merge([run, other], tmp_path / "m", weights=weights)
    for name, delta in deltas(weights_in(merged.folder), base).items():
        assert_close(delta, weights[0] * one[name] + weights[1] * two[name], atol=1e-5, rtol=0)
    assert f"{weights[1]:g} times `lora`" in (tmp_path / "m" / "README.md").read_text()
    half = weights_in(merge([run, other], tmp_path / "half", weights=weights, interpolation=0.5).folder)
    for name, delta in deltas(half, base).items():
        assert_close(2 * delta, weights[0] * one[name] + weights[1] * two[name], atol=1e-5, rtol=0)


def test_added_and_taken_away_again_is_the_base(run: Path, other: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter" / "lora", tmp_path / "same")
    merge([run, tmp_path / "same"], tmp_path / "zero", weights=[1, -1])
    base = weights_in(materialize("tiny_llama"))
    for name, value in weights_in(tmp_path / "zero").items():
        assert_close(value, base[name], atol=1e-6, rtol=0)
    merge([run, other, tmp_path / "same"], tmp_path / "only", weights=[1, 1, -1])
    expected = weights_in(merge([other], tmp_path / "other").folder)
    for name, value in weights_in(tmp_path / "only").items():
        assert_close(value, expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_sum_of_loras_is_one_lora(tmp_path: Path, quantization: str) -> None:
    words = [f"model.quantization={quantization}"]
    one = finished_run(tmp_path / "one", *words, "+peft@peft.second=lora", "peft.second.use_rslora=true")
    two = finished_run(tmp_path / "two", *words, "peft.lora.r=3", "peft.lora.target_modules=[v_proj]", seed=2)
    written = merge([one, two], tmp_path / "sum", weights=[0.5, -2], as_adapter=True)
    assert written.is_adapter and written.difference < 1e-5 and written.effect is not None and written.effect > 0.1
    saved = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert saved["r"] == saved["lora_alpha"] == 4 + 16 + 3
    if quantization == "none":
        merge([one, two], tmp_path / "model", weights=[0.5, -2])
        expected = of_run(tmp_path / "model")
        assert_close(of_run(tmp_path / "sum"), expected, atol=1e-5, rtol=0)
        theirs = PeftModel.from_pretrained(plain(materialize("tiny_llama")), str(tmp_path / "sum")).eval()
        assert_close(logits(theirs, IDS)[0], expected, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "sum").chat_template
    assert "0.5 times `second`" in (tmp_path / "sum" / "README.md").read_text()
    with pytest.raises(UserError, match="--force"):
        merge([one, two], tmp_path / "sum", weights=[0.5, -2], as_adapter=True)
    with pytest.raises(UserError, match="is no model folder"):
        merge([one, two], tmp_path / "sum", force=True)


MERGING = [method for method in PEFT_SCHEMAS if FACTS[method].merges]


def small(method: str) -> list[str]:
    return [f"peft.{method}.{key}={value}" for key, value in SMALL.get(method, {}).items()]


@pytest.mark.parametrize("method", MERGING)
def test_every_method_that_merges(method: str, tmp_path: Path) -> None:
    words = small(method) if method != "bitfit" else ["model=tiny_gpt2"]  # a Llama has no place for biases
    run = finished_run(tmp_path / "run", f"peft=[{method}]", *words)
    merged = merge([run], tmp_path / "m")
    assert_close(of_run(tmp_path / "m"), of_run(run), atol=1e-4, rtol=0)
    assert merged.effect is not None and merged.effect > 0.01


KINDS = [
    ["lora", "ia3"],
    ["ia3", "lora"],
    ["oft", "lora", "ln_tuning", "vera", "ia3"],
    ["loha", "oft", "lokr"],
    ["lora", "freeze"],  # of the same weights, in the wrong order
]


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_adapters_of_several_kinds(kinds: list[str], tmp_path: Path) -> None:
    words = [f"peft=[{','.join(kinds)}]", *(word for kind in kinds for word in small(kind))]
    run = finished_run(tmp_path / "run", *words, "+peft@peft.last=lora")
    assert merge([run], tmp_path / "m").difference < 1e-4
    assert_close(of_run(tmp_path / "m"), of_run(run), atol=1e-4, rtol=0)
    assert "base_layer" not in "".join(weights_in(tmp_path / "m"))


@pytest.mark.parametrize("peft", ["ia3", "lora,ia3"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_other_kinds_on_a_quantised_base(kind: str, peft: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", f"model.quantization={kind}", f"peft=[{peft}]")
    merged = merge([run], tmp_path / "m")
    assert merged.difference < 1e-4 and (merged.of_activations is not None) == (kind == "int8")
    if kind == "nf4":
        assert_close(of_run(tmp_path / "m"), of_run(run), atol=1e-4, rtol=0)


def test_the_order_of_kinds_matters_and_is_kept(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "peft=[lora,ia3]")
    lora, ia3 = (run / "adapter" / name for name in ("lora", "ia3"))
    one = merge([lora, ia3], tmp_path / "1", base="builtin:tiny_llama").folder
    two = merge([ia3, lora], tmp_path / "2", base="builtin:tiny_llama").folder
    assert_close(of_run(one), of_run(run), atol=1e-4, rtol=0)
    assert not torch.allclose(of_run(two), of_run(run), atol=1e-3)


def test_what_has_no_weighted_sum_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    ia3 = finished_run(tmp_path / "ia3", "peft=[ia3]")
    assert merge([run, ia3], tmp_path / "m", weights=[0.5, 1]).difference < 1e-4
    for arguments, fix in (
        ({"weights": [1, 0.5]}, "--weights 1 for it"),
        ({"interpolation": 0}, "leave out --interpolate"),
        ({"interpolation": 0.5}, "leave out --interpolate"),
    ):
        with pytest.raises(UserError, match="adapter/ia3: is ia3, whose change(.|\n)*only plain LoRA") as refused:
            merge([run, ia3], tmp_path / "n", **arguments)
        assert refused.value.fix == fix
    with pytest.raises(UserError, match="is ia3: only plain LoRAs have a sum"):
        merge([run, ia3], tmp_path / "n", as_adapter=True)
    dora = finished_run(tmp_path / "dora", "peft.lora.use_dora=true")
    with pytest.raises(UserError, match="is lora with use_dora, whose change"):
        merge([run, dora], tmp_path / "n", weights=[1, 2])
    norms = [finished_run(tmp_path / name, "peft=[ln_tuning]") for name in ("n1", "n2")]
    with pytest.raises(UserError, match="replaces the normalisation layers, and so does"):
        merge(norms, tmp_path / "n")
    with pytest.raises(UserError, match="3 weights for 2 runs or adapters"):
        merge([run, ia3], tmp_path / "n", weights=[1, 1, 1])
    with pytest.raises(UserError, match="no finite number"):
        merge([run, ia3], tmp_path / "n", weights=[1, float("nan")])
    full = finished_run(tmp_path / "full", "peft=full")
    with pytest.raises(UserError, match="no adapter whose update could be weighted"):
        merge([full], tmp_path / "n", weights=[0.5])
    with pytest.raises(UserError, match="written in float32"):
        merge([run], tmp_path / "n", as_adapter=True, dtype=DType.float16)
    assert not (tmp_path / "n").exists()


def test_weights_on_the_command_line(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", str(run), str(tmp_path / "m"), "--with", str(other), "--weights", "1", "-1"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_adapter"] is False
    assert main([*words, "--as-adapter"]) == 2
    words[2] = str(tmp_path / "a")
    assert main([*words, "--as-adapter"]) == 0 and "or plain peft" in capsys.readouterr().out


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
        (["peft=prompt_tuning"], {}, "virtual tokens are inputs"),
        (["peft=[lora,p_tuning_v2]"], {}, "gives keys and values without a token"),
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
    assert main(["merge", str(run), "m", "--max-shard-size", size]) == 2
