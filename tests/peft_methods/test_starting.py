"""One after another: an entry starts from trained weights, and frozen it stays as it is while another is trained."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import peft
import pytest
import torch
from merging import finished_run
from safetensors.torch import load_file
from torch.testing import assert_close
from training import trained_run
from transformers import PreTrainedModel
from tuners import text_logits, trained

import tunecli
from tests.peft_methods.test_grid import SMALL
from tunecli.config.checks import find_problems
from tunecli.config.compose import Composed, compose_run, load_config
from tunecli.config.errors import ConfigError, Problem, UserError
from tunecli.config.origins import find_origins, stated
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.peft_checks import ONCE
from tunecli.config.peft_facts import FACTS
from tunecli.config.run import RunConfig, to_yaml, with_head
from tunecli.lint import fit_problems
from tunecli.models.load import load_model
from tunecli.peft_methods.composition import inject, trained_off
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.starting import find_starts, head_left_behind, put_starts_in_place, start_folders

IDS = torch.randint(4, 200, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(lm: torch.nn.Module) -> torch.Tensor:
    return text_logits(lm, IDS)


def words_of(method: str, name: str = "") -> list[str]:
    name = name or method
    choice = [f"peft=[{method}]"] if name == method else [f"+peft@peft.{name}={method}"]
    # The recipe's body has values for an entry `lora`.
    own = {"r": 16, "lora_alpha": 32} if method == "lora" else SMALL.get(method, {})
    values = {key: f"'{value}'" if isinstance(value, str) else value for key, value in own.items()}
    return choice + [f"peft.{name}.{key}={value}" for key, value in values.items()]


def second_stage(stage_one: Path, method: str, *, freeze: bool = True, run_dir: Path | None = None) -> RunConfig:
    """Trains an entry `second` on top of `method` as stage one left it."""
    second = "lora" if method in ONCE or not FACTS[method].starts_as_base else method
    words = [f"peft=[{method}]", f"peft.{method}.init_from={stage_one}", f"peft.{method}.freeze={freeze}"]
    if method == "lora":
        words += ["peft.lora.r=16", "peft.lora.lora_alpha=32"]
    composed = compose_run("smoke_sft_lora", [*words, *words_of(second, "second")])
    assert not find_problems(composed.config)
    if run_dir is None:
        return composed.config
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(composed.config))
    return put_starts_in_place(composed.config, run_dir)


def model_of(config: RunConfig, run_dir: Path) -> PreTrainedModel:
    lm = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"))
    inject(lm, config.peft, seed=3, starts=start_folders(config, run_dir))
    return lm


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_stage_two_starts_where_stage_one_ended_and_leaves_it_as_it_is(method: str, tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one", *words_of(method))
    expected = logits(tunecli.load(one)[0])
    before = load_file(one / "adapter" / method / "adapter_model.safetensors")
    config = second_stage(one, method, run_dir=tmp_path / "two")
    lm = model_of(config, tmp_path / "two")
    assert torch.equal(logits(lm), expected)
    assert not torch.equal(expected, logits(tunecli.load("builtin:tiny_llama")[0]))
    assert trained(lm) and all("tune_second" in name for name in trained(lm))
    lm.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in trained(lm).values())
    assert all(p.grad is None for p in lm.parameters() if not p.requires_grad)
    for parameter in trained(lm).values():
        parameter.data += 0.1
    moved = logits(lm)
    assert not torch.equal(moved, expected)
    with trained_off(lm, config.peft):
        assert torch.equal(logits(lm), expected)
    assert torch.equal(logits(lm), moved) and all("tune_second" in name for name in trained(lm))
    save_adapters(lm, config.peft, tmp_path / "two" / "adapter", base=config.model.path)
    tunecli.load("builtin:tiny_llama")[1].save_pretrained(tmp_path / "two" / "adapter")
    after = load_file(tmp_path / "two" / "adapter" / method / "adapter_model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    shutil.rmtree(one)
    assert torch.equal(logits(tunecli.load(tmp_path / "two")[0]), moved)


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_without_freeze_it_is_trained_on(method: str, tmp_path: Path) -> None:
    """Also from the peft folder alone, away from its run."""
    one = finished_run(tmp_path / "one", *words_of(method))
    shutil.copytree(one / "adapter" / method, tmp_path / "alone")
    expected = logits(tunecli.load(one)[0])
    for start in (one, tmp_path / "alone"):
        words = [f"peft=[{method}]", f"peft.{method}.init_from={start}"]
        words += ["peft.lora.r=16", "peft.lora.lora_alpha=32"] if method == "lora" else []
        config = compose_run("smoke_sft_lora", words).config
        (tmp_path / f"from_{start.name}").mkdir()
        config = put_starts_in_place(config, tmp_path / f"from_{start.name}")
        lm = model_of(config, tmp_path / f"from_{start.name}")
        assert torch.equal(logits(lm), expected)
        fresh = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"))
        inject(fresh, load_config(one / "config.yaml").peft, seed=0)
        if method not in ("p_tuning", "prefix_tuning"):  # of which a result keeps the rows, without their network
            assert trained(lm).keys() == trained(fresh).keys()
        assert {p.dtype for p in trained(lm).values()} == {torch.float32}


def problems_of(config: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        find_starts(config)
    return [str(problem) for problem in refused.value.problems]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rank 4, as in the recipe"""
    return finished_run(tmp_path_factory.mktemp("one") / "run", "peft.lora.target_modules=[q_proj,v_proj]")


@pytest.fixture(scope="module")
def two_entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("two") / "run", "+peft@peft.second=lora", "peft.second.r=2")


def started(*words: str) -> RunConfig:
    return compose_run("smoke_sft_lora", list(words)).config


@pytest.mark.parametrize("away", [False, True])
def test_the_structure_is_the_checkpoints(one: Path, away: bool, tmp_path: Path) -> None:
    """Values that are the method's defaults count as not stated, others have to be the same."""
    start = one
    if away:
        start = tmp_path / "away"
        shutil.copytree(one / "adapter" / "lora", start)
    (tmp_path / "run").mkdir()
    config = started(f"peft.lora.init_from={start}", "peft.lora.r=16", "peft.lora.lora_alpha=32")
    config = put_starts_in_place(config, tmp_path / "run")
    assert (config.peft["lora"].r, config.peft["lora"].lora_alpha) == (4, 8)
    assert all(name.endswith(("q_proj", "v_proj")) for name in config.peft["lora"].target_modules)
    assert load_config(tmp_path / "run" / "config.yaml") == config
    find_starts(started(f"peft.lora.init_from={start}", "peft.lora.target_modules=[v_proj,q_proj]"))
    words = ["peft.lora.r=8", "peft.lora.use_rslora=true", "peft.lora.target_modules=[q_proj,k_proj]"]
    rank, targets, rslora = sorted(problems_of(started(f"peft.lora.init_from={start}", *words)))
    assert f"peft.lora.r: is 8, but {start} was trained with 4" in rank and "peft.lora.r=4" in rank
    assert "[q_proj,k_proj], but" in targets and "is true, but" in rslora and "use_rslora=false" in rslora


@pytest.mark.parametrize("value", [16, 4])
def test_a_stated_value_holds_or_is_refused_although_it_is_the_default(one: Path, value: int, tmp_path: Path) -> None:
    composed = compose_run("smoke_sft_lora", [f"peft.lora.init_from={one}", f"peft.lora.r={value}"])
    (tmp_path / "origins.json").write_text(json.dumps(find_origins(composed)))
    if value == 4:
        assert put_starts_in_place(composed.config, tmp_path).peft["lora"].r == 4
        return
    with pytest.raises(ConfigError) as refused:
        put_starts_in_place(composed.config, tmp_path)
    (problem,) = refused.value.problems
    assert problem.where == "peft.lora.r" and problem.fix.startswith("peft.lora.r=4")
    assert problem.what == f"is 16 (command line), but {one} was trained with 4"
    assert [each.where for each in fit_problems_of(composed)] == ["peft.lora.r"]


def fit_problems_of(composed: Composed) -> list[Problem]:
    with pytest.raises(ConfigError) as refused:
        fit_problems(composed.config, stated(find_origins(composed)))
    return refused.value.problems


def test_which_adapter_of_several(one: Path, two_entries: Path) -> None:
    other = ["peft=[]", "+peft@peft.other=lora"]
    taken = find_starts(started(*other, f"peft.other.init_from={one}"))["other"]
    assert (taken.folder, taken.entry.init_from) == (one / "adapter" / "lora", str(one / "adapter" / "lora"))
    second = two_entries / "adapter" / "second"
    assert find_starts(started(*other, f"peft.other.init_from={second}"))["other"].entry.r == 2
    (problem,) = problems_of(started(*other, f"peft.other.init_from={two_entries}"))
    assert "holds several adapters, and none is called other: lora, second" in problem
    assert "peft.other.init_from=" in problem and "adapter/lora" in problem


def test_none_of_those_that_were_trained_together_is_lost_silently(two_entries: Path) -> None:
    (lost,) = problems_of(started(f"peft.lora.init_from={two_entries}"))
    assert "trained lora, second together, and second would be left out" in lost
    alone, _, both = lost.partition("fix: ")[2].partition(" takes this one alone; to take them too: ")
    assert find_starts(started(alone))["lora"].folder.name == "lora"
    both_starts = find_starts(started(f"peft.lora.init_from={two_entries}", *shlex.split(both)))
    assert {name: start.folder.name for name, start in both_starts.items()} == {"lora": "lora", "second": "second"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["train.max_steps=1", "data.validation=null", "train.eval_every=null"]
    return trained_run(tmp_path_factory.mktemp("classifier") / "run", "smoke_classify", *words)


def test_beside_a_head(classifier: Path) -> None:
    """The head is another matter: it is for labels, which may be others. So the log says that it is new."""
    compose = ["peft=[]", "+peft@peft.x=lora", f"peft.x.init_from={classifier / 'adapter' / 'lora'}"]
    config = with_head(compose_run("smoke_classify", compose).config)
    entries = config.peft | {name: start.entry for name, start in find_starts(config).items()}
    assert entries["x"].init_from == str(classifier / "adapter" / "lora")
    head = head_left_behind(entries)
    assert head == str(classifier / "adapter" / "head")
    words = [f"peft.lora.init_from={classifier}", "+peft@peft.head=freeze", f"peft.head.init_from={head}"]
    config = compose_run("smoke_classify", words).config
    assert not fit_problems(config) and head_left_behind(config.peft) is None


def test_a_head_for_another_number_of_labels_is_refused(classifier: Path, tmp_path: Path) -> None:
    words = [
        "+peft@peft.head=freeze",
        f"peft.head.init_from={classifier / 'adapter' / 'head'}",
        "stage.labels=[negative,positive,other]",
    ]
    with pytest.raises(UserError, match=r"is \[2\] in the checkpoint, and \[3\] in this model"):
        trained_run(tmp_path / "run", "smoke_classify", *words)


def test_all_that_does_not_fit_is_said_at_once(one: Path, tmp_path: Path) -> None:
    elsewhere = started(
        "model=tiny_qwen3", f"peft.lora.init_from={one}", "+peft@peft.b=ia3", f"peft.b.init_from={one}"
    )
    base, also = problems_of(elsewhere)
    assert "belongs to the base model builtin:tiny_llama, not to this run's builtin:tiny_qwen3" in base
    assert "model.path=builtin:tiny_llama" in base and "peft.b.init_from" in also
    (quantized,) = problems_of(started(f"peft.lora.init_from={one}", "model.quantization=nf4"))
    assert "trained with model.quantization=none, this run has nf4" in quantized
    (kind,) = problems_of(started("peft=[ia3]", f"peft.ia3.init_from={one}"))
    assert kind.startswith("peft.ia3.init_from: is ") and "the method lora, and this entry is ia3" in kind
    assert f"fix: peft=[lora] peft.lora.init_from={one} trains it on" in kind
    (named,) = problems_of(started("peft=[]", "+peft@peft.x=ia3", f"peft.x.init_from={one}"))
    assert "fix: +peft@peft.x=lora where ia3 is chosen for it" in named
    (nothing,) = problems_of(started("peft.lora.init_from=./nowhere"))
    assert nothing.startswith("peft.lora.init_from: there is no folder ./nowhere\n")
    (nobody,) = problems_of(started("peft.lora.init_from=nowhere"))
    assert nobody.startswith("peft.lora.init_from: there is no folder nowhere here, and the Hub")
    (nobody,) = problems_of(started("peft.lora.init_from=nobody/nothing"))
    assert "there is no adapter nobody/nothing, here or on the Hub" in nobody
    (whole,) = problems_of(started("peft.lora.init_from=builtin:tiny_llama"))
    assert "is a whole model" in whole and "model.path=" in whole
    full = finished_run(tmp_path / "full", "peft=full")
    assert "is a whole model" in problems_of(started(f"peft.lora.init_from={full}"))[0]
    shutil.copytree(one / "adapter" / "lora", tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_model.safetensors").rename(tmp_path / "pickled" / "adapter_model.bin")
    assert "no adapter_model.safetensors" in problems_of(started(f"peft.lora.init_from={tmp_path / 'pickled'}"))[0]


def test_a_plain_folder_that_holds_more_than_an_adapter_is_refused(one: Path, tmp_path: Path) -> None:
    for name, value in (("bias", "all"), ("init_lora_weights", "pissa"), ("modules_to_save", ["lm_head"])):
        shutil.copytree(one / "adapter" / "lora", tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
        words = [f"peft.lora.init_from={tmp_path / name}", "peft.lora.r=16", "peft.lora.lora_alpha=32"]
        assert "holds weights of the base model too" in problems_of(started(*words))[0]


def test_a_folder_of_plain_peft(tmp_path: Path) -> None:
    """Short names of layers, a rank pattern and rank stabilisation, as peft itself writes them."""
    lm = tunecli.load("builtin:tiny_llama")[0]
    base = lm.config._name_or_path
    config = peft.LoraConfig(
        r=8, lora_alpha=3, target_modules=["q_proj", "o_proj"], rank_pattern={"layers.0.self_attn.o_proj": 2},
        use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(lm, config)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    words = [f"peft.lora.init_from={tmp_path / 'theirs'}", "peft.lora.r=16", "peft.lora.lora_alpha=32"]
    (tmp_path / "run").mkdir()
    run = put_starts_in_place(started(*words), tmp_path / "run")
    assert run.peft["lora"].use_rslora and run.peft["lora"].rank_pattern == {"layers.0.self_attn.o_proj": 2}
    assert load_config(tmp_path / "run" / "config.yaml") == run
    assert_close(logits(model_of(run, tmp_path / "run")), logits(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["peft.lora.freeze=true"], "peft.lora.freeze: is set, but there are no trained weights"),
        (["peft.lora.init_from=./nowhere"], "peft.lora.init_from: ./nowhere does not exist"),
        (["peft.lora.init_from=owner/name", "peft.lora.freeze=true"], "every entry is frozen"),
        (["peft=[ln_tuning]", "+peft@peft.second=ln_tuning"], "peft.second: only one ln_tuning can be on"),
    ],
)
def test_what_shows_without_reading_anything(words: list[str], said: str) -> None:
    assert said in "\n".join(map(str, find_problems(started(*words), new_run=True)))


def test_a_run_with_adapters_is_no_model_and_its_fix_works(two_entries: Path) -> None:
    (problem,) = find_problems(started(f"model.path={two_entries}"))
    assert "is a run that trained adapters of builtin:tiny_llama: lora, second" in problem.what
    words = shlex.split(problem.fix.partition(" trains them on")[0])
    config = started(*words)
    assert list(config.peft) == ["lora", "second"] and not find_problems(config)
    assert {name: start.entry.r for name, start in find_starts(config).items()} == {"lora": 4, "second": 2}


def test_a_full_run_is_a_model(tmp_path: Path) -> None:
    full = finished_run(tmp_path / "full", "peft=full")
    config = started(f"model.path={full}")
    assert not find_problems(config)
    assert torch.equal(logits(model_of(config, tmp_path)), logits(tunecli.load(full)[0]))
