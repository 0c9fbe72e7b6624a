"""Houlsby, Pfeiffer and parallel adapters: the laws of a method on every architecture and task, where they stand, and
what happens to an input that waits for its adapter."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from architectures import ENCODER_SHAPE, ENCODERS_AND_PAIRS, EVERY, GENERATING, inputs_of, logits_of, model_of
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tiny import CONFIGS, PADDED_CONFIGS, SHAPE, WINDOWED, causal_lm
from torch.testing import assert_close
from tuners import ADAPTER, adapted, disturbed, generated, gradients, switch, trained

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import (
    BottleneckConfig,
    HoulsbyConfig,
    NonLinearity,
    ParallelConfig,
    PfeifferConfig,
    Placement,
)
from tunecli.peft_methods.bottleneck import BottleneckLayer, peft_config
from tunecli.peft_methods.layouts import LAYOUTS

every_method = pytest.mark.parametrize("method", [HoulsbyConfig, PfeifferConfig, ParallelConfig])
every_architecture = pytest.mark.parametrize(("architecture", "task"), EVERY)
generating = pytest.mark.parametrize(("architecture", "task"), GENERATING)
WITHOUT_FEED_FORWARD_MODULE = [("bart", "seq2seq"), ("bert", "classification"), ("opt", "causal_lm")]


def layers(model) -> list[BottleneckLayer]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def waiting(model) -> int:
    return sum(len(layer._waiting) for layer in layers(model))


@every_method
@every_architecture
class TestEveryArchitecture:
    def test_without_a_zero_start_it_changes_little(self, method: type, architecture: str, task: str) -> None:
        model, inputs = model_of(architecture, task), inputs_of(architecture, task)
        before = logits_of(model, inputs)
        difference = logits_of(adapted(model, method(zero_start=False)), inputs) - before
        assert 0 < difference.abs().max() < 0.3 * before.std()

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_gives_the_same_gradients(
        self, method: type, architecture: str, task: str, reentrant: bool
    ) -> None:
        model, inputs = disturbed(adapted(model_of(architecture, task), method())), inputs_of(architecture, task)
        expected = gradients(model, inputs)
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for name, gradient in gradients(model, inputs).items():
            assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
        assert waiting(model) == 0


@every_method
@pytest.mark.parametrize(("architecture", "task"), [("llama", "causal_lm"), ("bart", "seq2seq")])
def test_plain_peft_loads_the_folder(method: type, architecture: str, task: str, tmp_path: Path) -> None:
    inputs = inputs_of(architecture, task)
    config = method(learned_scaling=True, non_linearity=NonLinearity.silu, layers=[1])
    model = peft.get_peft_model(base := model_of(architecture, task), peft_config(config, base))
    disturbed(model).save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(model_of(architecture, task), str(tmp_path), is_trainable=True)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    assert trained(loaded).keys() == trained(model).keys()
    with loaded.disable_adapter():
        assert torch.equal(logits_of(loaded, inputs), logits_of(model_of(architecture, task), inputs))
    assert torch.equal(logits_of(loaded.unload(), inputs), logits_of(model_of(architecture, task), inputs))


class TestWhereTheyStand:
    def io_of(self, model, inputs, reads: str, ends: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Input of the module `reads` and output of the module `ends` in a forward call."""
        seen = {}
        model.get_submodule(reads).register_forward_pre_hook(lambda module, args: seen.update(input=args[0]))
        model.get_submodule(ends).register_forward_hook(lambda module, args, output: seen.update(output=output))
        logits_of(model, inputs)
        return seen["input"], seen["output"]

    @pytest.mark.parametrize(
        ("architecture", "task", "reads", "ends"),
        [
            ("llama", "causal_lm", "model.layers.0.mlp", "model.layers.0.mlp"),
            ("gpt2", "causal_lm", "transformer.h.0.mlp", "transformer.h.0.mlp"),
            ("t5", "seq2seq", *["encoder.block.0.layer.1.DenseReluDense"] * 2),
            ("bart", "seq2seq", "model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2"),
            ("opt", "causal_lm", "model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2"),
            ("bert", "tagging", "bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"),
        ],
    )
    def test_parallel_adds_what_it_makes_of_the_feed_forward_layers_input(
        self, architecture: str, task: str, reads: str, ends: str
    ) -> None:
        inputs = inputs_of(architecture, task)
        _, before = self.io_of(model_of(architecture, task), inputs, reads, ends)
        model = disturbed(adapted(model_of(architecture, task), ParallelConfig(scaling=3.0)))
        hidden, after = self.io_of(model, inputs, reads, ends)
        adapter = model.get_submodule(ends).bottleneck_adapter[ADAPTER]
        assert_close(after - before, 3 * adapter.up(adapter.down(hidden).relu()).detach(), atol=1e-5, rtol=1e-5)

    def test_in_series_it_adds_what_it_makes_of_the_modules_output(self) -> None:
        inputs, end = inputs_of("llama", "causal_lm"), "model.layers.0.mlp.down_proj"
        _, before = self.io_of(model_of("llama", "causal_lm"), inputs, end, end)
        model = disturbed(adapted(model_of("llama", "causal_lm"), PfeifferConfig()))
        _, after = self.io_of(model, inputs, end, end)
        adapter = model.get_submodule(end).bottleneck_adapter[ADAPTER]
        assert_close(after - before, adapter.up(adapter.down(before).relu()).detach(), atol=1e-5, rtol=1e-5)

    def test_the_scaling_can_be_learned(self) -> None:
        fixed = disturbed(adapted(causal_lm(), PfeifferConfig(scaling=0.5)))
        learned = adapted(causal_lm(), PfeifferConfig(scaling=0.5, learned_scaling=True))
        state = get_peft_model_state_dict(fixed, adapter_name=ADAPTER)
        set_peft_model_state_dict(learned, state, adapter_name=ADAPTER)
        inputs = inputs_of("llama", "causal_lm")
        assert torch.equal(logits_of(learned, inputs), logits_of(fixed, inputs))
        assert sum(parameter.numel() == 1 for parameter in trained(learned).values()) == 2

    def test_dropout_acts_in_training_only(self) -> None:
        model, inputs = disturbed(adapted(causal_lm(), PfeifferConfig(dropout=0.5))), inputs_of("llama", "causal_lm")
        assert torch.equal(logits_of(model, inputs), logits_of(model, inputs))
        model.train()
        assert model(**inputs).loss != model(**inputs).loss

    @pytest.mark.parametrize(
        ("architecture", "task", "per_number"), [("llama", "causal_lm", 1), ("t5", "seq2seq", 2)]
    )
    def test_layers_are_chosen_by_number(self, architecture: str, task: str, per_number: int) -> None:
        targets = peft_config(PfeifferConfig(layers=[1]), model_of(architecture, task)).target_modules
        assert len(targets) == per_number
        assert all(".1." in target for target in targets)

    def test_a_layer_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"layers: .*no layer 2, 7(.|\n)*from 0 to 1"):
            peft_config(HoulsbyConfig(layers=[0, 7, 2]), causal_lm())

    @every_method
    def test_an_unknown_architecture_is_refused_until_modules_are_named(self, method: type) -> None:
        bloom = causal_lm("bloom")
        with pytest.raises(UserError, match=r"target_modules: .*bloom(.|\n)*dense_4h_to_h"):
            peft_config(method(), bloom)
        model = adapted(bloom, method(target_modules=["mlp.dense_4h_to_h"], zero_start=False))
        assert all(g.abs().sum() > 0 for g in gradients(model, inputs_of("bloom", "causal_lm")).values())

    def test_modules_that_are_not_there_are_refused_with_those_that_are(self) -> None:
        with pytest.raises(UserError, match=r"target_modules: (.|\n)*down_proj"):
            peft_config(PfeifferConfig(target_modules=["c_proj"]), causal_lm())

    def test_modules_that_return_no_tensor_are_refused(self) -> None:
        model = adapted(causal_lm(), PfeifferConfig(target_modules=["self_attn"]))
        with pytest.raises(UserError, match="returns a tuple"):
            logits_of(model, inputs_of("llama", "causal_lm"))

    def test_they_take_the_width_of_the_module(self) -> None:
        """A key projection is narrower than the model, and an inner projection wider."""
        names = ["k_proj", "up_proj"]
        for method in (PfeifferConfig(target_modules=names), ParallelConfig(target_modules=names)):
            model = disturbed(adapted(causal_lm(), method))
            gradients(model, inputs_of("llama", "causal_lm"))


class TestAfterTheNorm:
    """Pfeiffer et al.'s place on BERT, as AdapterHub's library computes it."""

    AFTER = PfeifferConfig(placement=Placement.after_norm)

    @pytest.mark.parametrize("architecture", ["bert", "roberta"])
    def test_it_equals_the_computation_written_out(self, architecture: str) -> None:
        inputs = inputs_of(architecture, "tagging")
        model = disturbed(adapted(model_of(architecture, "tagging"), self.AFTER))
        plain = model_of(architecture, "tagging")
        for ours, theirs in zip(model.base_model.encoder.layer, plain.base_model.encoder.layer, strict=True):
            adapter = ours.output.LayerNorm.bottleneck_adapter[ADAPTER]
            theirs.output.forward = partial(self.written_out, theirs.output, adapter)
        expected = logits_of(plain, inputs)
        assert not torch.allclose(expected, logits_of(model_of(architecture, "tagging"), inputs), atol=1e-2)
        assert_close(logits_of(model, inputs), expected, atol=1e-6, rtol=1e-6)

    def written_out(self, end, adapter, inner: torch.Tensor, layer_input: torch.Tensor) -> torch.Tensor:
        """original_ln_before, residual_before_ln and original_ln_after of AdapterHub's `seq_bn`."""
        hidden = end.dropout(end.dense(inner))
        residual = hidden
        hidden = end.LayerNorm(hidden + layer_input)
        hidden = adapter.up(adapter.down(hidden).relu()) + residual
        return end.LayerNorm(hidden + layer_input)

    def test_bart_has_one_in_both_stacks(self) -> None:
        model = model_of("bart", "seq2seq")
        targets = peft_config(self.AFTER, model).target_modules
        assert peft_config(PfeifferConfig(), model).target_modules == targets
        assert {target.rpartition(".")[2] for target in targets} == {"final_layer_norm"} and len(targets) == 4

    def test_before_the_norm_it_is_half_of_houlsby(self) -> None:
        model = model_of("bert", "tagging")
        before = peft_config(PfeifferConfig(placement=Placement.before_norm), model).target_modules
        assert before == [t for t in peft_config(HoulsbyConfig(), model).target_modules if "attention" not in t]

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom"])
    def test_models_that_normalise_before_have_no_such_place(self, architecture: str) -> None:
        with pytest.raises(UserError, match=r"placement: (.|\n)*no LayerNorm after(.|\n)*before_norm"):
            peft_config(self.AFTER, causal_lm(architecture))
        if architecture != "bloom":
            assert not peft_config(PfeifferConfig(), causal_lm(architecture)).after_norm

    def test_opt_350m_normalises_after(self) -> None:
        config = CONFIGS["opt"]()
        config.do_layer_norm_before = False
        model = T.AutoModelForCausalLM.from_config(config)
        inputs = inputs_of("opt", "causal_lm")
        before = logits_of(model, inputs)
        adapted(model, PfeifferConfig())
        assert {type(layer.get_base_layer()) for layer in layers(model)} == {torch.nn.LayerNorm}
        assert_close(logits_of(model, inputs), before)
        assert all(g.abs().sum() > 0 for n, g in gradients(disturbed(model), inputs).items() if "up" in n)

    def test_two_at_once_read_the_same_norm_in_turn(self) -> None:
        inputs = inputs_of("bert", "tagging")
        both = adapted(model_of("bert", "tagging"), PfeifferConfig(), "tune_one")
        with pytest.warns(UserWarning, match="multiple adapters"):
            adapted(both, PfeifferConfig(zero_start=False), "tune_two")
        alone = adapted(model_of("bert", "tagging"), PfeifferConfig())
        state = get_peft_model_state_dict(both, adapter_name="tune_two")
        set_peft_model_state_dict(alone, state, adapter_name=ADAPTER)
        for layer in layers(both):
            layer.set_adapter(["tune_one", "tune_two"])  # the first adds nothing yet
        assert_close(logits_of(both, inputs), logits_of(alone, inputs), atol=1e-6, rtol=0)

    def test_named_modules_and_a_norm_to_be_found_contradict_each_other(self) -> None:
        words = ["peft=pfeiffer", "peft.pfeiffer.placement=after_norm", "peft.pfeiffer.target_modules=[x]"]
        (problem,) = find_problems(compose_run("smoke_sft_lora", words).config)
        assert problem.where == "peft.pfeiffer.target_modules"
        model = model_of("bert", "tagging")
        named = peft_config(PfeifferConfig(target_modules=["output.dense"]), model)
        assert not named.after_norm and all(target.endswith("output.dense") for target in named.target_modules)


@every_method
def test_without_a_zero_start_weights_are_drawn_as_houlsby_et_al_say(method: type) -> None:
    """A normal of deviation 0.01, truncated at two deviations, which leaves 0.0088."""
    model = adapted(causal_lm(), method(bottleneck_size=64, zero_start=False))
    weights = torch.cat([p.detach().flatten() for n, p in trained(model).items() if n.endswith("weight")])
    assert weights.abs().max() <= 0.02
    assert weights.std().item() == pytest.approx(0.0088, rel=0.03)
    assert all((p == 0).all() for n, p in trained(model).items() if n.endswith("bias"))


KNOWN = {
    "gemma": lambda: T.GemmaConfig(num_key_value_heads=2, head_dim=16, **SHAPE),
    "qwen2": lambda: T.Qwen2Config(num_key_value_heads=2, **SHAPE),
    "gemma3_text": CONFIGS["gemma3"],
    "gemma3": lambda: T.Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(),
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=1,
    ),
    "mt5": lambda: T.MT5Config(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
    "mbart": lambda: T.MBartConfig(**{
        key: value for key, value in ENCODERS_AND_PAIRS["bart"]().to_diff_dict().items() if key != "model_type"
    }),
    "gemma2": lambda: T.Gemma2Config(**WINDOWED, **SHAPE),
    "xlm-roberta": lambda: T.XLMRobertaConfig(**ENCODER_SHAPE),
}  # fmt: skip


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_every_known_layout_is_that_of_the_model(architecture: str) -> None:
    config = (CONFIGS | PADDED_CONFIGS | ENCODERS_AND_PAIRS | KNOWN)[architecture]()
    with torch.device("meta"):
        model = T.AutoModel.from_config(config)
    assert model.config.model_type == architecture
    decoders = int(config.is_encoder_decoder)  # which have cross-attention
    stacks = 1 + decoders
    found = {method: len(_targets(method, model)) for method in (HoulsbyConfig, PfeifferConfig, ParallelConfig)}
    expected = {HoulsbyConfig: 2 * (2 * stacks + decoders), PfeifferConfig: 2 * stacks, ParallelConfig: 2 * stacks}
    assert found == expected
    assert not any("vision" in target for target in _targets(ParallelConfig, model))


def _targets(method: type[BottleneckConfig], model) -> list[str]:
    return peft_config(method(), model).target_modules


class TestWaitingInputs:
    """Of feed-forward layers that are no module of their own."""

    @pytest.mark.parametrize(("architecture", "task"), WITHOUT_FEED_FORWARD_MODULE)
    def test_none_is_kept(self, architecture: str, task: str) -> None:
        model, inputs = adapted(model_of(architecture, task), ParallelConfig()), inputs_of(architecture, task)
        gradients(model, inputs)
        assert waiting(model) == 0
        switch(model, on=False)
        logits_of(model, inputs)
        assert waiting(model) == 0
        for layer in layers(model):
            layer.delete_adapter(ADAPTER)
        logits_of(model, inputs)
        assert waiting(model) == 0

    @pytest.mark.parametrize(("architecture", "task"), WITHOUT_FEED_FORWARD_MODULE)
    def test_several_forward_calls_before_one_backward(self, architecture: str, task: str) -> None:
        model = disturbed(adapted(model_of(architecture, task), ParallelConfig()))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        one = inputs_of(architecture, task)
        other = one | {"input_ids": one["input_ids"].flip(0), "attention_mask": one["attention_mask"].flip(0)}
        apart = [gradients(model, inputs) for inputs in (one, other)]
        model.zero_grad()
        sum(model(**inputs).loss for inputs in (one, other)).backward()
        for name, parameter in trained(model).items():
            assert_close(parameter.grad, apart[0][name] + apart[1][name], atol=1e-6, rtol=1e-5)

    def test_threads_do_not_meet(self) -> None:
        model = disturbed(adapted(model_of("bart", "seq2seq"), ParallelConfig()))
        prompts = [torch.randint(4, 90, (1, 5 + i), generator=torch.Generator().manual_seed(i)) for i in range(6)]
        expected = [generated(model, prompt) for prompt in prompts]
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda prompt: generated(model, prompt), prompts))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert waiting(model) == 0

    def test_a_copy_of_the_model_stands_on_its_own(self) -> None:
        model, inputs = (
            disturbed(adapted(model_of("bart", "seq2seq"), ParallelConfig())),
            inputs_of("bart", "seq2seq"),
        )
        expected = logits_of(model, inputs)
        twin = copy.deepcopy(model)
        switch(model, on=False)
        assert torch.equal(logits_of(twin, inputs), expected)

    def test_adapters_in_series_and_parallel_share_a_module(self) -> None:
        """Each alone is what it is in a model of its own, whichever way the other reads."""
        inputs = inputs_of("bart", "seq2seq")
        both = adapted(model_of("bart", "seq2seq"), PfeifferConfig(zero_start=False), "tune_series")
        with pytest.warns(UserWarning, match="multiple adapters"):
            adapted(both, ParallelConfig(zero_start=False), "tune_beside")
        for name, method in {"tune_series": PfeifferConfig, "tune_beside": ParallelConfig}.items():
            for layer in layers(both):
                layer.set_adapter(name)
            alone = adapted(model_of("bart", "seq2seq"), method())
            state = get_peft_model_state_dict(both, adapter_name=name)
            set_peft_model_state_dict(alone, state, adapter_name=ADAPTER)
            assert torch.equal(logits_of(both, inputs), logits_of(alone, inputs))


def test_merging_is_refused() -> None:
    model = adapted(causal_lm(), PfeifferConfig())
    with pytest.raises(UserError, match="cannot be merged"):
        layers(model)[0].merge()
    with pytest.raises(UserError, match="cannot be merged"):
        layers(model)[0].unmerge()
    wrapped = peft.get_peft_model(lm := causal_lm(), peft_config(ParallelConfig(), lm))
    with pytest.raises(UserError, match="cannot be merged"):
        wrapped.merge_and_unload()


def test_a_long_list_of_targets_is_saved_in_its_short_form() -> None:
    with torch.device("meta"):
        model = T.AutoModelForCausalLM.from_config(T.LlamaConfig(torch_dtype=torch.bfloat16))
    adapted(model, PfeifferConfig(bottleneck_size=256))
    assert all(parameter.device.type == "meta" for parameter in trained(model).values())
    assert model.peft_config[ADAPTER].target_modules == ["down_proj"]  # 32 paths


def test_the_width_inside_follows_from_the_models() -> None:
    assert peft_config(PfeifferConfig(), causal_lm()).bottleneck_size == 64 // 16
    assert peft_config(replace(PfeifferConfig(), reduction_factor=64), causal_lm()).bottleneck_size == 1
    with pytest.raises(UserError, match="reduction_factor: is 65, and what it divides is 64 wide"):
        peft_config(replace(PfeifferConfig(), reduction_factor=65), causal_lm())
