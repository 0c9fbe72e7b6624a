"""PiSSA, OLoRA and EVA against peft's own, and that what is saved belongs to the untouched base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from architectures import inputs_of, logits_of, model_of
from peft.tuners.lora import LoraLayer
from tiny import RandomExamples, batching, causal_lm
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, losses

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import Ia3Config, LoraConfig, LoraInit
from tunecli.data.batching import collate
from tunecli.engine.batch import Batch
from tunecli.models.policy import use_packed_attention
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import load_adapters, save_adapters

CHANGING = [init for init in LoraInit if init.changes_base]
MODELS = [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("t5", "seq2seq"), ("bert", "classification")]
OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {".*0.*": 6}, "alpha_pattern": {".*1.*": 3}},
    "rslora patterns": {"use_rslora": True, "rank_pattern": {".*0.*": 6}, "alpha_pattern": {".*1.*": 3}},
}


def with_lora(model: PreTrainedModel, init: LoraInit, **options) -> PreTrainedModel:
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=init, **options)
    inject(model, {"lora": config}, seed=0, batches=batches)
    return model


def batches(packed: bool = False) -> Iterator[Batch]:
    examples = RandomExamples([40, 30, 22, 36, 50, 25])
    while True:
        for rows in ([0, 1], [2, 3], [4, 5]):
            yield collate(examples, rows, batching(packed=packed))


def lora_layers(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, ...]]:
    """Path -> A, B and the base's weight."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            found[path.removeprefix("base_model.model.")] = (a, b, module.get_base_layer().weight)
    return found


@pytest.mark.parametrize("init", [LoraInit.pissa, LoraInit.olora], ids=lambda init: init.value)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_the_start_is_pefts(init: LoraInit, options: dict) -> None:
    ours = lora_layers(with_lora(causal_lm(), init, **options))
    targets = sorted({path.rpartition(".")[2] for path in ours})
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=init.value, **options)
    theirs = lora_layers(peft.get_peft_model(causal_lm(), config))
    assert ours.keys() == theirs.keys() and len(ours) == 14
    for path, tensors in ours.items():
        for mine, other in zip(tensors, theirs[path], strict=True):
            assert_close(mine, other, atol=1e-5, rtol=0)


def test_subspace_iteration_leaves_hardly_more_in_the_base_than_the_whole_decomposition() -> None:
    exact, quick = (lora_layers(with_lora(causal_lm(), init)) for init in (LoraInit.pissa, LoraInit.pissa_niter_16))
    for path, (_, _, rest) in exact.items():
        least, left = torch.linalg.matrix_norm(rest), torch.linalg.matrix_norm(quick[path][2])
        assert least - 1e-5 <= left < 1.02 * least


@pytest.mark.parametrize("init", CHANGING, ids=lambda init: init.value)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("architecture", "task"), MODELS, ids="-".join)
def test_it_starts_as_the_base_and_what_is_saved_belongs_to_the_untouched_one(
    init: LoraInit, options: str, architecture: str, task: str, tmp_path: Path
) -> None:
    inputs = inputs_of(architecture, task)
    untouched = logits_of(model_of(architecture, task), inputs)
    model = with_lora(model_of(architecture, task), init, **OPTIONS[options])
    assert_close(logits_of(model, inputs), untouched, atol=2e-5, rtol=1e-5)
    expected = logits_of(disturbed(model), inputs)
    save_adapters(model, ["lora"], tmp_path, base="somewhere")
    saved = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert saved["r"] == 8 and saved["init_lora_weights"] is True
    ours = model_of(architecture, task)
    load_adapters(ours, [tmp_path / "lora"])
    assert_close(logits_of(ours, inputs), expected, atol=1e-4, rtol=1e-4)
    theirs = peft.PeftModel.from_pretrained(model_of(architecture, task), str(tmp_path / "lora"))
    assert_close(logits_of(theirs, inputs), expected, atol=1e-4, rtol=1e-4)
    with theirs.disable_adapter():
        assert torch.equal(logits_of(theirs, inputs), untouched)
    save_adapters(model, ["lora"], tmp_path, base="somewhere")  # saving changes nothing
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize("init", CHANGING, ids=lambda init: init.value)
def test_before_any_step_the_saved_change_is_none(init: LoraInit, tmp_path: Path) -> None:
    inputs = inputs_of("llama", "causal_lm")
    save_adapters(with_lora(causal_lm(), init), ["lora"], tmp_path, base="somewhere")
    loaded = causal_lm()
    load_adapters(loaded, [tmp_path / "lora"])
    assert_close(logits_of(loaded, inputs), logits_of(causal_lm(), inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", CHANGING, ids=lambda init: init.value)
def test_on_a_bf16_base_only_the_rest_is_rounded(init: LoraInit) -> None:
    """A weight is then off by no more than a bf16 weight is anyway; peft is off by several times that."""
    model = with_lora(causal_lm().bfloat16(), init)
    weights = {
        path: module.weight for path, module in causal_lm().bfloat16().named_modules() if path.endswith("proj")
    }
    for path, (a, b, rest) in lora_layers(model).items():
        assert a.dtype == b.dtype == torch.float32 and rest.dtype == torch.bfloat16
        off = rest.float() + 2 * b @ a - weights[path].float()
        assert off.abs().max() <= 2**-8 * rest.abs().max()


@pytest.mark.parametrize("init", LoraInit, ids=lambda init: init.value)
def test_the_loss_falls_from_every_start(init: LoraInit) -> None:
    first, *_, last = losses(with_lora(causal_lm(), init), inputs_of("llama", "causal_lm"))
    assert last < first - 0.01


def test_two_starts_are_the_same_bits() -> None:
    for init in LoraInit:
        one, other = (lora_layers(with_lora(causal_lm(), init)) for _ in range(2))
        assert all(torch.equal(x, y) for path in one for x, y in zip(one[path], other[path], strict=True)), init


def test_with_another_method_around_it(tmp_path: Path) -> None:
    methods = {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.pissa), "ia3": Ia3Config(), "b": LoraConfig(r=2)}
    model, inputs = causal_lm(), inputs_of("llama", "causal_lm")
    inject(model, methods, seed=0)
    expected = logits_of(disturbed(model), inputs)
    save_adapters(model, methods, tmp_path, base="somewhere")
    loaded = causal_lm()
    load_adapters(loaded, [tmp_path / name for name in methods])
    assert_close(logits_of(loaded, inputs), expected, atol=1e-4, rtol=1e-4)


class TestEva:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_the_directions_are_pefts(self, architecture: str) -> None:
        ours = lora_layers(with_lora(causal_lm(architecture), LoraInit.eva))
        targets = sorted({path.rpartition(".")[2] for path in ours})
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=targets, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
        )
        wrapped = peft.get_peft_model(causal_lm(architecture), config)
        stream = batches()
        peft.initialize_lora_eva_weights(wrapped, [for_peft(next(stream)) for _ in range(3)], show_progress_bar=False)
        theirs = lora_layers(wrapped)
        for path, (a, b, _) in ours.items():
            assert_close(a, theirs[path][0], atol=1e-4, rtol=0)
            assert not b.any()

    def test_padding_does_not_matter(self) -> None:
        padded = lora_layers(with_lora(causal_lm(), LoraInit.eva))
        model = causal_lm()
        use_packed_attention(model)
        config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=LoraInit.eva)
        inject(model, {"lora": config}, seed=0, batches=lambda: batches(packed=True))
        for path, (a, _, _) in lora_layers(model).items():
            assert_close(a, padded[path][0], atol=1e-4, rtol=0)

    def test_a_is_orthonormal_and_what_it_saves_is_plain_lora(self, tmp_path: Path) -> None:
        model = with_lora(causal_lm(), LoraInit.eva, rank_pattern={"q_proj": 6})
        for path, (a, _, _) in lora_layers(model).items():
            assert len(a) == (6 if path.endswith("q_proj") else 4)
            assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)
        save_adapters(model, ["lora"], tmp_path, base="somewhere")
        saved = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        assert saved["r"] == 4 and saved["init_lora_weights"] is True

    def test_few_trained_tokens_wait_for_more_and_too_few_are_refused(self) -> None:
        examples = RandomExamples([3, 3])  # two trained tokens each

        def scarce(count: int) -> Iterator[Batch]:
            return (collate(examples, [i % 2], batching(packed=False)) for i in range(count))

        config = {"lora": LoraConfig(r=4, init_lora_weights=LoraInit.eva)}
        inject(causal_lm(), config, seed=0, batches=lambda: scarce(8))
        with pytest.raises(UserError, match=r"peft\.lora\.init_lora_weights: (.|\n)*fewer than 4 trained tokens"):
            inject(causal_lm(), config, seed=0, batches=lambda: scarce(1))


def for_peft(batch: Batch) -> dict[str, torch.Tensor]:
    """What peft masks by labels is here masked by the positions that predict them."""
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.kept] = 1
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def test_a_rank_beyond_the_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"peft\.lora\.r: is 40 for .*k_proj, which has no more than 32"):
        inject(causal_lm(), {"lora": LoraConfig(r=40, init_lora_weights=LoraInit.pissa)}, seed=0)


def test_a_shared_weight_is_refused() -> None:
    model = causal_lm()
    model.lm_head.weight = model.model.embed_tokens.weight
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=LoraInit.pissa)
    with pytest.raises(UserError, match="would change the input embeddings"):
        inject(model, {"lora": config}, seed=0)


@pytest.mark.parametrize(
    ("recipe", "overrides", "where"),
    [
        ("smoke_qlora", ["peft.lora.init_lora_weights=pissa"], "peft.lora.init_lora_weights"),
        ("smoke_qlora", ["peft.lora.init_lora_weights=olora"], "peft.lora.init_lora_weights"),
        ("smoke_qlora", ["peft.lora.init_lora_weights=eva"], "peft.lora.init_lora_weights"),
        ("smoke_sft_lora", ["peft=[ia3,lora]", "peft.lora.init_lora_weights=pissa"], "peft.lora.init_lora_weights"),
        (
            "smoke_sft_lora",
            ["+peft@peft.b=lora", "peft.lora.init_lora_weights=olora", "peft.b.use_dora=true"],
            "peft.b.use_dora",
        ),
        ("smoke_sft_lora", ["peft.lora.loraplus_lr_ratio=0"], "peft.lora.loraplus_lr_ratio"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(recipe: str, overrides: list[str], where: str) -> None:
    (problem,) = find_problems(compose_run(recipe, overrides).config)
    assert problem.where == where
