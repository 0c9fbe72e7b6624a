"""Partial fine-tuning: what is chosen, that training copies is training the weights, and what merging leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from architectures import ENCODERS_AND_PAIRS, inputs_of, logits_of, model_of
from merging import finished_run
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny import RandomExamples, batching, causal_lm
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, gradients, switch, trained

import tunecli
from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import BitFitConfig, FreezeConfig, LoraConfig
from tunecli.data.batching import collate
from tunecli.merge import merge
from tunecli.models.policy import Policy, use_packed_attention
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.freeze import FreezeLayer, peft_config
from tunecli.peft_methods.injection import activate, add
from tunecli.peft_methods.saving import load_adapter, load_adapters, save_adapters

EVERYTHING = FreezeConfig(patterns=[""])
ARCHITECTURES = [
    ("llama", "causal_lm"),  # embeddings not tied
    ("gpt2", "causal_lm"),  # tied
    ("t5", "seq2seq"),
    ("bart", "seq2seq"),
    ("bert", "classification"),
]
every_architecture = pytest.mark.parametrize(("architecture", "task"), ARCHITECTURES, ids="-".join)


def frozen(model: PreTrainedModel, config: FreezeConfig) -> PreTrainedModel:
    inject(model, {"freeze": config}, seed=0)
    return model


def layers(model: PreTrainedModel) -> list[FreezeLayer]:
    return [module for module in model.modules() if isinstance(module, FreezeLayer)]


def merge_layers(model: PreTrainedModel, *, inside_out: bool = False) -> None:
    for layer in tuner_layers(model, inside_out=inside_out):
        layer.merge()


def tuner_layers(model: PreTrainedModel, *, inside_out: bool) -> list[BaseTunerLayer]:
    found = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return found[::-1] if inside_out else found


def trained_in_place(model: PreTrainedModel, config: FreezeConfig) -> PreTrainedModel:
    chosen = {*peft_config(config, model).parameters}
    assert chosen
    model.requires_grad_(False)
    for name in chosen:
        model.get_parameter(name).requires_grad_(True)
    return model


def three_steps(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> PreTrainedModel:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        gradients(model, inputs)
        optimizer.step()
    return model


def of_base(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """State without what methods added."""
    state = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if "freeze_copy" not in name}


@pytest.mark.parametrize(
    "config",
    [FreezeConfig(embeddings=True), FreezeConfig(last_n_layers=1, norms=True), EVERYTHING],
    ids=["embeddings", "last layer and norms", "everything"],
)
@every_architecture
def test_it_equals_training_the_weights_themselves(config: FreezeConfig, architecture: str, task: str) -> None:
    """With everything chosen: full fine-tuning."""
    inputs = inputs_of(architecture, task)
    start = logits_of(model_of(architecture, task), inputs)
    plain = three_steps(trained_in_place(model_of(architecture, task), config), inputs)
    copies = three_steps(frozen(model_of(architecture, task), config), inputs)
    assert not torch.allclose(logits_of(plain, inputs), start, atol=1e-2)
    assert_close(logits_of(copies, inputs), logits_of(plain, inputs), atol=1e-6, rtol=1e-6)
    assert len(trained(copies)) == len(trained(plain))  # tied tensors are one
    merge_layers(copies)
    assert of_base(copies).keys() == plain.state_dict().keys()
    for name, value in of_base(copies).items():
        assert_close(value, plain.state_dict()[name], atol=1e-6, rtol=1e-6)


def test_everything_is_as_much_as_full_fine_tuning() -> None:
    for architecture, task in ARCHITECTURES:
        model = model_of(architecture, task)
        expected = sum(parameter.numel() for parameter in model.parameters())
        assert sum(parameter.numel() for parameter in trained(frozen(model, EVERYTHING)).values()) == expected


class TestChoice:
    def names(self, model: PreTrainedModel, **choice: object) -> set[str]:
        return set(peft_config(FreezeConfig(**choice), model).parameters)

    def test_layers_are_the_last_of_each_stack(self) -> None:
        assert all(".layers.1." in name for name in self.names(causal_lm(), last_n_layers=1))
        t5 = self.names(model_of("t5", "seq2seq"), last_n_layers=1)
        assert {name.rpartition(".layer.")[0].partition(".layer.")[0] for name in t5} == {
            "encoder.block.1",
            "decoder.block.1",
        }

    def test_norms_and_embeddings(self) -> None:
        assert len(self.names(causal_lm(), norms=True)) == 5
        assert self.names(causal_lm(), embeddings=True) == {"model.embed_tokens.weight"}
        assert self.names(causal_lm("gpt2"), embeddings=True) == {"transformer.wte.weight", "transformer.wpe.weight"}
        assert self.names(model_of("t5", "seq2seq"), embeddings=True) == {"shared.weight"}
        bert = self.names(model_of("bert", "tagging"), embeddings=True)
        assert {name.split(".")[-2] for name in bert} == {
            "word_embeddings",
            "position_embeddings",
            "token_type_embeddings",
        }

    def test_patterns_add_to_the_rest(self) -> None:
        both = self.names(causal_lm(), patterns=["lm_head", r"layers\.0\..*q_proj"], norms=True)
        alone = self.names(causal_lm(), norms=True)
        assert both - alone == {"lm_head.weight", "model.layers.0.self_attn.q_proj.weight"}

    def test_a_tied_tensor_is_found_by_any_of_its_names_and_trained_under_all(self) -> None:
        config = peft_config(FreezeConfig(patterns=["^lm_head"]), causal_lm("gpt2"))
        assert (config.parameters, config.tied) == (["transformer.wte.weight"], ["lm_head.weight"])

    def test_a_bias_that_a_masked_language_models_head_has_twice(self) -> None:
        model = T.BertForMaskedLM(ENCODERS_AND_PAIRS["bert"]())
        assert self.names(model, patterns=[r"^cls\.predictions\.bias"]) == {"cls.predictions.decoder.bias"}

    def test_what_is_not_there_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"peft\.freeze\.patterns: 'c_attn' is in no name(.|\n)*embed_tokens"):
            frozen(causal_lm(), FreezeConfig(patterns=["c_attn"]))
        with pytest.raises(UserError, match=r"peft\.freeze\.last_n_layers: the model has 2 layers, not 3"):
            frozen(causal_lm(), FreezeConfig(last_n_layers=3))

    def test_a_tensor_of_a_module_with_submodules_is_refused(self) -> None:
        model = causal_lm()
        model.model.extra = torch.nn.Parameter(torch.zeros(3))
        with pytest.raises(UserError, match=r"model\.extra belongs to a LlamaModel"):
            frozen(model, FreezeConfig(patterns=["extra"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "selects no weights to train"),
        (["peft.freeze.patterns=['(']"], "no regular expression"),
        (["peft.freeze.last_n_layers=-1"], "is -1"),
    ],
)
def test_problems_are_found_before_anything_is_loaded(words: list[str], said: str) -> None:
    (problem,) = find_problems(compose_run("smoke_sft_lora", ["peft=freeze", *words]).config)
    assert said in problem.what


def test_it_is_not_combined_with_ln_tuning() -> None:
    (problem,) = find_problems(
        compose_run("smoke_sft_lora", ["peft=[freeze,ln_tuning]", "peft.freeze.norms=true"]).config
    )
    assert "ln_tuning" in problem.what


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_chunked_head_of_a_policy_uses_and_trains_the_copy(architecture: str) -> None:
    config = FreezeConfig(patterns=["^lm_head"])
    batch = collate(RandomExamples([9, 4, 7]), range(3), batching())
    found = []
    for model in (trained_in_place(causal_lm(architecture), config), frozen(causal_lm(architecture), config)):
        torch.manual_seed(0)
        (head,) = trained(model).values()
        head.data += 0.1 * torch.randn(head.shape)
        use_packed_attention(model)
        logprobs = Policy(model, packed=True)(batch)
        logprobs.sum().backward()
        found.append((logprobs.detach(), head.grad))
    assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_two_entries_that_train_the_same_tensor_are_refused(tmp_path: Path) -> None:
    """A frozen one below another is none of these."""
    norms, last = FreezeConfig(norms=True), FreezeConfig(last_n_layers=1)
    with pytest.raises(
        UserError, match=r"peft.b: chooses model.layers.1.input_layernorm.weight and 1 more, and so does"
    ):
        inject(causal_lm(), {"a": norms, "b": last}, seed=0)
    inject(causal_lm(), {"a": norms, "b": FreezeConfig(embeddings=True)}, seed=0)
    save_adapters(frozen(causal_lm(), norms), ["freeze"], tmp_path, base="somewhere")
    start = replace(norms, init_from="somewhere")
    with pytest.raises(UserError, match="and so does peft.a"):
        inject(causal_lm(), {"a": start, "b": last}, seed=0, starts={"a": tmp_path / "freeze"})
    inject(causal_lm(), {"a": replace(start, freeze=True), "b": last}, seed=0, starts={"a": tmp_path / "freeze"})


class TestWithLora:
    """A copy stands for the base whichever of the two methods comes first."""

    METHODS = {"freeze": FreezeConfig(last_n_layers=1), "lora": LoraConfig(r=4)}

    def model(self, order: list[str]) -> PreTrainedModel:
        model = causal_lm()
        inject(model, {name: self.METHODS[name] for name in order}, seed=0)
        return model

    def test_the_order_makes_no_difference(self, tmp_path: Path) -> None:
        one = disturbed(self.model(["freeze", "lora"]))
        save_adapters(one, self.METHODS, tmp_path, base="somewhere")
        other = causal_lm()
        load_adapters(other, [tmp_path / "lora", tmp_path / "freeze"])
        inputs = inputs_of("llama", "causal_lm")
        assert_close(logits_of(other, inputs), logits_of(one, inputs), atol=1e-6, rtol=0)
        names = {name.replace(".base_layer", "") for name in trained(self.model(["freeze", "lora"]))}
        assert {name.replace(".base_layer", "") for name in trained(self.model(["lora", "freeze"]))} == names

    @pytest.mark.parametrize("order", [["freeze", "lora"], ["lora", "freeze"]], ids="-".join)
    @pytest.mark.parametrize("inside_out", [False, True])
    def test_both_are_merged_in_either_order(self, order: list[str], inside_out: bool) -> None:
        model, inputs = disturbed(self.model(order)), inputs_of("llama", "causal_lm")
        expected = logits_of(model, inputs)
        merge_layers(model, inside_out=inside_out)
        assert_close(logits_of(model, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inside_out", [False, True])
def test_it_is_merged_together_with_bitfit(inside_out: bool) -> None:
    """Where a module has a bias and where it gets one, and where the bias itself is trained."""
    for model, add_missing in ((causal_lm(), True), (causal_lm("gpt2"), False)):
        methods = {"freeze": FreezeConfig(last_n_layers=1), "bitfit": BitFitConfig(add_missing=add_missing)}
        inject(model, methods, seed=0)
        inputs = inputs_of("llama", "causal_lm")
        before = logits_of(disturbed(model), inputs)
        merge_layers(model, inside_out=inside_out)
        assert_close(logits_of(model, inputs), before, atol=1e-5, rtol=1e-5)
        for layer in tuner_layers(model, inside_out=not inside_out):
            layer.unmerge()
        assert_close(logits_of(model, inputs), before, atol=1e-5, rtol=1e-5)


WORDS = ["peft=freeze", "peft.freeze.embeddings=true", "peft.freeze.patterns=[norm,q_proj]"]


class TestMerging:
    def test_ties_stay_and_unmerging_gives_every_bit_back(self) -> None:
        model, inputs = causal_lm("gpt2").bfloat16(), inputs_of("gpt2", "causal_lm")
        before = logits_of(model, inputs)
        disturbed(frozen(model, FreezeConfig(embeddings=True)))
        merge_layers(model)
        head, table = model.lm_head.untouched.weight, model.transformer.wte.untouched.weight
        assert head is table and head.dtype is torch.bfloat16
        assert not torch.allclose(logits_of(model, inputs), before, atol=1e-2)
        switch(model, on=False)
        assert torch.equal(logits_of(model, inputs), before)
        for layer in layers(model):
            layer.unmerge()
        switch(model, on=False)
        assert torch.equal(logits_of(model, inputs), before)

    def test_what_is_not_finite_is_refused_where_that_is_checked(self) -> None:
        model = frozen(causal_lm(), FreezeConfig(norms=True))
        next(iter(trained(model).values())).data.fill_(torch.nan)
        with pytest.raises(ValueError, match="not finite"):
            layers(model)[0].merge(safe_merge=True)

    def test_a_run_is_merged_into_plain_weights(self, tmp_path: Path) -> None:
        run = finished_run(tmp_path / "run", *WORDS)
        merged = T.AutoModelForCausalLM.from_pretrained(merge([run]).folder)
        inputs = inputs_of("llama", "causal_lm")
        assert_close(logits_of(merged, inputs), logits_of(tunecli.load(run)[0], inputs), atol=1e-5, rtol=0)

    def test_a_bf16_run_is_merged_into_bf16_weights(self, tmp_path: Path) -> None:
        run = finished_run(tmp_path / "run", *WORDS, "train.precision=bf16", dtype=torch.bfloat16)
        merged = merge([run])
        assert merged.difference < 0.02 * merged.largest_logit
        model = T.AutoModelForCausalLM.from_pretrained(merged.folder)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class TestWhatItCosts:
    def test_only_what_is_trained_is_saved_and_tied_tensors_once(self, tmp_path: Path) -> None:
        model = frozen(causal_lm("gpt2"), FreezeConfig(embeddings=True, patterns=[r"h\.1\.ln_1\.bias"]))
        save_adapters(model, ["freeze"], tmp_path, base="somewhere")
        saved = load_file(tmp_path / "freeze" / "adapter_model.safetensors")
        assert {key.removeprefix("base_model.model.transformer."): value.shape for key, value in saved.items()} == {
            "wte.freeze_copy.weight": (96, 64),
            "wpe.freeze_copy.weight": (64, 64),
            "h.1.ln_1.freeze_copy.bias": (64,),
        }

    def test_the_base_keeps_its_tensors_and_there_is_one_copy_of_each_that_is_chosen(self) -> None:
        model = causal_lm("gpt2").bfloat16()
        before = {id(p): (p.data_ptr(), p.clone()) for p in model.parameters()}
        frozen(model, FreezeConfig(embeddings=True, last_n_layers=1))
        disturbed(model)
        base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        assert {id(p): p.data_ptr() for p in base} == {key: pointer for key, (pointer, _) in before.items()}
        assert all(torch.equal(p, before[id(p)][1]) for p in base)
        chosen = peft_config(FreezeConfig(embeddings=True, last_n_layers=1), causal_lm("gpt2")).parameters
        assert len(trained(model)) == len(chosen)


def test_a_second_one_starts_where_the_first_is(tmp_path: Path) -> None:
    """Stage after stage: the first stays as it was trained."""
    inputs = inputs_of("gpt2", "causal_lm")
    first = disturbed(frozen(causal_lm("gpt2"), FreezeConfig(embeddings=True)))
    save_adapters(first, ["freeze"], tmp_path, base="somewhere")
    model = causal_lm("gpt2")
    load_adapter(model, tmp_path / "freeze", "tune_first")
    activate(model, ["tune_first"])
    model.requires_grad_(False)
    add(model, "tune_second", peft_config(FreezeConfig(embeddings=True, norms=True), causal_lm("gpt2")))
    activate(model, ["tune_first", "tune_second"])
    expected = logits_of(first, inputs)
    assert torch.equal(logits_of(model, inputs), expected)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("tune_second" in name)
    disturbed(model)
    assert not torch.allclose(logits_of(model, inputs), expected, atol=1e-2)
    activate(model, ["tune_first"])
    assert torch.equal(logits_of(model, inputs), expected)


def test_plain_peft_merges_the_folder(tmp_path: Path) -> None:
    inputs = inputs_of("bert", "classification")
    model = disturbed(frozen(model_of("bert", "classification"), FreezeConfig(last_n_layers=1, norms=True)))
    save_adapters(model, ["freeze"], tmp_path, base="somewhere")
    loaded = peft.PeftModel.from_pretrained(model_of("bert", "classification"), str(tmp_path / "freeze"))
    merged = loaded.merge_and_unload(safe_merge=True)
    assert not layers(merged)
    assert torch.equal(logits_of(merged, inputs), logits_of(model, inputs))


def test_a_bf16_base_answers_in_bf16_also_where_a_part_of_a_module_is_trained() -> None:
    model = causal_lm("gpt2").bfloat16()
    frozen(model, FreezeConfig(patterns=[r"c_attn\.weight", r"c_fc\.bias", "ln_f"]))
    inputs = inputs_of("gpt2", "causal_lm")
    seen = []
    for layer in layers(model):
        layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    gradients(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        gradients(model, inputs)
    assert len(seen) == 2 * len(layers(model)) and set(seen) == {torch.bfloat16}
