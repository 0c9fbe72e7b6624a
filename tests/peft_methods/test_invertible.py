"""MAD-X's invertible adapters: that they can be undone, where they stand, and that their weights are there once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as T
from architectures import ENCODERS_AND_PAIRS, inputs_of, logits_of, model_of
from safetensors.torch import load_file
from tiny import SPECIAL, causal_lm
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, gradients, losses, trained

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import (
    BottleneckConfig,
    FreezeConfig,
    HoulsbyConfig,
    LoraConfig,
    ParallelConfig,
    PeftConfig,
    PfeifferConfig,
)
from tunecli.peft_methods.bottleneck import start
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.injection import activate
from tunecli.peft_methods.invertible import CoupledEmbedding, CoupledHead, Coupling
from tunecli.peft_methods.saving import load_adapters, save_adapters

MADX = PfeifferConfig(bottleneck_size=8, invertible=True)
IDS = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def bert_mlm() -> PreTrainedModel:
    torch.manual_seed(0)
    return T.BertForMaskedLM(ENCODERS_AND_PAIRS["bert"]())


LANGUAGE_MODELS = {
    "llama": causal_lm,
    "gpt2": lambda: causal_lm("gpt2"),
    "t5": lambda: model_of("t5", "seq2seq"),
    "bart": lambda: model_of("bart", "seq2seq"),
    "bert": bert_mlm,
}
every_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


def with_methods(name: str, **methods: PeftConfig) -> PreTrainedModel:
    model = LANGUAGE_MODELS[name]()
    inject(model, methods, seed=0)
    return model


def couplings(model: PreTrainedModel) -> list[Coupling]:
    return [module for module in model.modules() if isinstance(module, Coupling)]


def parts(model: PreTrainedModel) -> tuple[list[CoupledEmbedding], list[CoupledHead]]:
    modules = list(model.modules())
    return (
        [module for module in modules if isinstance(module, CoupledEmbedding)],
        [module for module in modules if isinstance(module, CoupledHead)],
    )


def test_what_goes_forward_comes_back() -> None:
    coupling = Coupling(64, 16, torch.relu, None)
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    changed = coupling(hidden)
    assert (changed - hidden).abs().mean() > 0.1
    assert_close(coupling.inverse(changed), hidden, atol=1e-6, rtol=0)
    assert_close(coupling(coupling.inverse(hidden)), hidden, atol=1e-6, rtol=0)
    for network in (coupling.first, coupling.second):
        start(network, zero=True)
    assert torch.equal(coupling(hidden), hidden)


def test_it_is_the_coupling_of_nice() -> None:
    coupling = Coupling(4, 3, torch.tanh, None)
    one, two = torch.randn(1, 2), torch.randn(1, 2)
    first = one + coupling.first.up(torch.tanh(coupling.first.down(two)))
    second = two + coupling.second.up(torch.tanh(coupling.second.down(first)))
    assert_close(coupling(torch.cat([one, two], -1)), torch.cat([first, second], -1))


@every_language_model
class TestEveryLanguageModel:
    def test_the_head_undoes_what_the_embeddings_do_also_with_two_at_once(self, name: str) -> None:
        model = disturbed(with_methods(name, one=MADX, two=HoulsbyConfig(bottleneck_size=8, invertible=True)))
        embedding, head = _embeddings(model, name)[-1], model.get_output_embeddings()
        plain = embedding.get_base_layer()(IDS)
        assert (embedding(IDS) - plain).abs().mean() > 0.01
        assert_close(head(embedding(IDS)), head.get_base_layer()(plain), atol=1e-5, rtol=0)

    def test_the_whole_is_what_the_parts_make(self, name: str) -> None:
        """Hooks that do the same to a plain model."""
        model = disturbed(with_methods(name, one=MADX))
        plain = with_methods(name, one=PfeifferConfig(bottleneck_size=8))
        bottlenecks = {key: value for key, value in model.state_dict().items() if key in plain.state_dict()}
        plain.load_state_dict(bottlenecks, strict=False)
        (coupling,) = couplings(model)
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
        without = logits_of(plain, inputs)
        for embedding in _embeddings(plain, name):
            embedding.register_forward_hook(lambda module, args, output: coupling(output))
        plain.get_output_embeddings().register_forward_pre_hook(lambda module, args: (coupling.inverse(args[0]),))
        assert (logits_of(plain, inputs) - without).abs().mean() > 1e-2
        assert_close(logits_of(plain, inputs), logits_of(model, inputs), atol=1e-5, rtol=1e-5)

    def test_its_weights_are_trained_and_saved_once(self, name: str, tmp_path: Path) -> None:
        model = disturbed(with_methods(name, one=MADX))
        width, inner = 64, 16  # half the width, halved again
        count = 2 * (2 * (width // 2) * inner + inner + width // 2)
        assert count == width**2 / 2 + 1.5 * width
        bottlenecks = with_methods(name, one=PfeifferConfig(bottleneck_size=8))
        assert _count(model) - _count(bottlenecks) == count
        save_adapters(model, ["one"], tmp_path, base="somewhere")
        saved = load_file(tmp_path / "one" / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in saved.values()) == _count(model)
        loaded = LANGUAGE_MODELS[name]()
        load_adapters(loaded, [tmp_path / "one"])
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
        activate(loaded, [])
        assert torch.equal(logits_of(loaded, inputs), logits_of(LANGUAGE_MODELS[name](), inputs))

    @pytest.mark.parametrize("order", [["madx", "freeze", "lora"], ["lora", "freeze", "madx"]], ids="-".join)
    def test_with_other_methods_on_embeddings_and_head(self, name: str, order: list[str], tmp_path: Path) -> None:
        head = {"bert": "decoder"}.get(name, "lm_head")
        methods = {
            "madx": MADX,
            "freeze": FreezeConfig(embeddings=True),
            "lora": LoraConfig(r=2, target_modules=[head]),
        }
        model = with_methods(name, **{key: methods[key] for key in order})
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
        assert_close(logits_of(model, inputs), logits_of(LANGUAGE_MODELS[name](), inputs), atol=1e-5, rtol=0)
        assert all(gradient.isfinite().all() for gradient in gradients(disturbed(model), inputs).values())
        save_adapters(model, order, tmp_path, base="somewhere")
        loaded = LANGUAGE_MODELS[name]()
        load_adapters(loaded, [tmp_path / key for key in order])
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in trained(model).values())


def _embeddings(model: PreTrainedModel, name: str) -> list[torch.nn.Module]:
    if name in ("t5", "bart"):
        return [model.get_encoder().embed_tokens, model.get_decoder().embed_tokens]
    return [model.bert.embeddings if name == "bert" else model.get_input_embeddings()]


def test_a_masked_language_model_learns_with_it() -> None:
    model = with_methods("bert", one=PfeifferConfig(layers=[0], bottleneck_size=1, invertible=True))
    first, *_, last = losses(model, {"input_ids": IDS, "labels": IDS})
    assert last < first - 0.1


@pytest.mark.parametrize("method", [HoulsbyConfig, PfeifferConfig, ParallelConfig])
def test_every_bottleneck_method_can_have_it(method: type[BottleneckConfig]) -> None:
    model = with_methods("llama", one=method(invertible=True, invertible_reduction_factor=4))
    (coupling,) = couplings(model)
    assert coupling.first.down.out_features == 64 // 2 // 4


def test_without_a_language_models_head_nothing_is_undone() -> None:
    model = model_of("bert", "classification")
    inject(model, {"one": MADX}, seed=0)
    embeddings, heads = parts(model)
    assert (len(embeddings), len(heads)) == (1, 0)
    assert all(g.abs().sum() > 0 for g in gradients(disturbed(model), inputs_of("bert", "classification")).values())


def test_in_bf16_it_starts_as_the_base_and_answers_in_bf16() -> None:
    model, inputs = causal_lm().bfloat16(), inputs_of("llama", "causal_lm")
    before = logits_of(model, inputs)
    inject(model, {"one": MADX}, seed=0)
    assert torch.equal(logits_of(model, inputs), before) and logits_of(model, inputs).dtype is torch.bfloat16


def test_widths_that_do_not_fit_are_refused() -> None:
    odd = T.AutoModelForCausalLM.from_config(
        T.GPT2Config(n_embd=63, n_layer=1, n_head=1, **SPECIAL), dtype=torch.float32
    )
    with pytest.raises(UserError, match=r"peft\.one\.invertible: embeddings of width 63 have no halves"):
        inject(odd, {"one": MADX}, seed=0)
    other = causal_lm()
    other.set_output_embeddings(torch.nn.Linear(32, 96))
    with pytest.raises(UserError, match="the embeddings are 64 wide and the head takes 32"):
        inject(other, {"one": MADX}, seed=0)


def test_a_factor_below_one_is_refused() -> None:
    words = ["peft=houlsby", "peft.houlsby.invertible=true", "peft.houlsby.invertible_reduction_factor=0.5"]
    (problem,) = find_problems(compose_run("smoke_sft_lora", words).config)
    assert problem.where == "peft.houlsby.invertible_reduction_factor"
