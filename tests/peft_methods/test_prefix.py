"""Prefix tuning and P-tuning v2: as peft computes them, where they stand, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from architectures import inputs_of, logits_of, model_of
from safetensors.torch import load_file
from tiny import causal_lm
from torch import Tensor
from torch.testing import assert_close
from tuners import disturbed, gradients, losses, trained

from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.peft import Attention, DeepPromptConfig, PrefixTuningConfig, PTuningV2Config
from tunecli.engine.checkpoint import trainable_state
from tunecli.models.attention import PREFIXES
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.prefix import Prefix, PrefixLayer
from tunecli.peft_methods.saving import load_adapters, save_adapters
from tunecli.peft_methods.switching import add_adapter, switch_to
from tunecli.run import main

PREFIX = 4
NAME = "prefix"


def with_prefix(model: T.PreTrainedModel, config: DeepPromptConfig | None = None) -> T.PreTrainedModel:
    """Moved away from its start, as other tests need one that does something."""
    inject(model, {NAME: config or PTuningV2Config(num_virtual_tokens=PREFIX)}, seed=0)
    return disturbed(model)


def prefixes(model: T.PreTrainedModel) -> dict[str, Prefix]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Prefix)}


def of_peft(architecture: str, task: str) -> tuple[peft.PeftModel, Tensor]:
    """peft's own prefix tuning on the same base, and its rows: [prefix, layers * 2 * key heads * head_dim]."""
    kind = {"causal_lm": "CAUSAL_LM", "classification": "SEQ_CLS"}[task]
    config = peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=PREFIX)
    model = peft.get_peft_model(model_of(architecture, task), config)
    rows = model.prompt_encoder["default"].embedding.weight
    rows.data = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
    return model, rows


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("gpt2", "causal_lm"), ("llama", "causal_lm"), ("qwen3", "causal_lm"), ("bert", "classification")],
)
def test_as_in_peft_but_for_the_positions_that_peft_spends_on_the_prefix(architecture: str, task: str) -> None:
    theirs, rows = of_peft(architecture, task)
    ours = with_prefix(model_of(architecture, task))
    if task == "classification":
        ours.classifier.load_state_dict(theirs.base_model.classifier.original_module.state_dict())
    layers = list(prefixes(ours).values())
    for layer, own in zip(layers, rows.chunk(len(layers), dim=1), strict=True):
        layer.rows.data = own.detach().clone()
    inputs = inputs_of(architecture, task)
    expected = logits_of(theirs, inputs)
    positions = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    assert_close(logits_of(ours, inputs | {"position_ids": positions + PREFIX}), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits_of(ours, inputs), expected, atol=1e-3)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
class TestEncoderDecoders:
    def test_each_kind_of_attention_has_a_prefix_of_its_own(self, architecture: str) -> None:
        inputs = inputs_of(architecture, "seq2seq")
        seen = [logits_of(model_of(architecture, "seq2seq"), inputs)]
        for kind in Attention:
            config = PTuningV2Config(num_virtual_tokens=PREFIX, attention=[kind])
            seen.append(logits_of(with_prefix(model_of(architecture, "seq2seq"), config), inputs))
        for i, logits in enumerate(seen):
            assert all((logits - other).abs().max() > 1e-2 for other in seen[:i])

    @pytest.mark.parametrize(
        ("kind", "inside"),
        [(Attention.encoder, "encoder."), (Attention.decoder, "decoder."), (Attention.cross, "decoder.")],
    )
    def test_only_that_is_trained(self, architecture: str, kind: Attention, inside: str) -> None:
        config = PTuningV2Config(num_virtual_tokens=PREFIX, attention=[kind])
        model = with_prefix(model_of(architecture, "seq2seq"), config)
        found = gradients(model, inputs_of(architecture, "seq2seq"))
        assert len(found) == len(prefixes(model)) == 2
        for path, gradient in found.items():
            assert f"{inside}" in path and gradient.abs().max() > 0
            assert ("EncDecAttention" in path or "encoder_attn" in path) is (kind is Attention.cross)

    def test_an_encoder_prefix_changes_what_the_encoder_gives(self, architecture: str) -> None:
        inputs = inputs_of(architecture, "seq2seq")
        texts = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        outputs = []
        for config in (PTuningV2Config(attention=[Attention.decoder]), PTuningV2Config()):
            model = with_prefix(model_of(architecture, "seq2seq"), config).eval()
            with torch.no_grad():
                outputs.append(model.get_encoder()(**texts).last_hidden_state)
        base = model_of(architecture, "seq2seq").eval().get_encoder()(**texts).last_hidden_state
        assert_close(outputs[0], base, atol=2e-6, rtol=0)
        assert (outputs[1] - base).abs().max() > 1e-2

    def test_each_stack_has_a_network_of_its_own(self, architecture: str) -> None:
        config = PrefixTuningConfig(num_virtual_tokens=PREFIX, encoder_hidden_size=8)
        model = with_prefix(model_of(architecture, "seq2seq"), config)
        trunks = {id(prefix.trunk) for prefix in prefixes(model).values()}
        assert len(prefixes(model)) == 6 and len(trunks) == 3


def test_a_model_of_one_attention_has_no_kinds_of_it() -> None:
    with pytest.raises(UserError, match="peft.prefix.attention: names kinds of attention"):
        with_prefix(causal_lm(), PTuningV2Config(attention=[Attention.decoder]))


def test_layers_are_chosen_by_number() -> None:
    model = with_prefix(causal_lm(), PTuningV2Config(num_virtual_tokens=PREFIX, layers=[1]))
    assert [path.split(".")[2] for path in prefixes(model)] == ["1"]
    with pytest.raises(UserError, match=r"peft\.prefix\.layers"):
        with_prefix(causal_lm(), PTuningV2Config(layers=[5]))


@pytest.mark.parametrize(("architecture", "task"), [("llama", "causal_lm"), ("t5", "seq2seq"), ("bert", "tagging")])
class TestProjection:
    CONFIG = PrefixTuningConfig(num_virtual_tokens=PREFIX, encoder_hidden_size=8)

    def test_the_result_is_plain_rows_with_equal_logits(self, architecture: str, task: str, tmp_path: Path) -> None:
        model = with_prefix(model_of(architecture, task), self.CONFIG)
        expected = logits_of(model, inputs_of(architecture, task))
        save_adapters(model, [NAME], tmp_path, base="somewhere")
        saved = load_file(tmp_path / NAME / "adapter_model.safetensors")
        assert all(key.endswith(".rows") and value.shape[0] == PREFIX for key, value in saved.items())
        assert json.loads((tmp_path / NAME / "adapter_config.json").read_text())["projected"] is False
        plain = model_of(architecture, task)
        load_adapters(plain, [tmp_path / NAME])
        assert_close(logits_of(plain, inputs_of(architecture, task)), expected, atol=1e-5, rtol=1e-5)

    def test_what_a_checkpoint_keeps_is_the_network(self, architecture: str, task: str) -> None:
        model = with_prefix(model_of(architecture, task), self.CONFIG)
        kept = trainable_state(model)
        assert sum(value.numel() for value in kept.values()) == sum(p.numel() for p in trained(model).values())
        assert any("trunk.embedding" in key for key in kept)

    def test_the_network_is_that_of_the_paper(self, architecture: str, task: str) -> None:
        """embedding -> linear -> tanh -> linear, the last of them for all layers together (Li & Liang, 2021, 4.3):
        one output of it per layer."""
        model = with_prefix(model_of(architecture, task), self.CONFIG)
        prefix = next(iter(prefixes(model).values()))
        hidden = torch.tanh(prefix.trunk.embedding @ prefix.trunk.linear.weight.T + prefix.trunk.linear.bias)
        flat = hidden @ prefix.head.weight.T + prefix.head.bias
        keys, values = prefix()
        assert_close(torch.stack([keys, values]).permute(2, 0, 1, 3).reshape(PREFIX, -1), flat)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "phi3", "gpt_neox", "gpt2", "opt"])
class TestCausal:
    """Mistral and Gemma 3 attend in windows of four tokens here, which the prefix is no part of."""

    def test_padded_on_the_left_as_unpadded(self, name: str) -> None:
        model = with_prefix(causal_lm(name)).eval()
        ids = torch.randint(4, 96, (1, 7), generator=torch.Generator().manual_seed(0))
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], dim=1)
        mask = (torch.arange(10) >= 3).long()[None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            alone = model(input_ids=ids).logits
            beside = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
        assert_close(beside, alone, atol=1e-5, rtol=1e-4)
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        for more in ({}, {"num_beams": 3}, {"use_cache": False}):
            generated = model.generate(padded, attention_mask=mask, **settings, **more)[:, 10:]
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **more)[:, 7:]
            assert torch.equal(generated, expected)

    def test_each_position_sees_the_prefix_and_nothing_that_comes_after(self, name: str) -> None:
        model = with_prefix(causal_lm(name)).eval()
        ids = torch.randint(4, 96, (1, 12), generator=torch.Generator().manual_seed(0))
        other = ids.clone()
        other[0, 8:] = 5
        with torch.no_grad():
            before, after = model(input_ids=ids).logits, model(input_ids=other).logits
            for prefix in prefixes(model).values():
                prefix.rows.data += 0.5
            moved = model(input_ids=ids).logits
        assert_close(before[0, :8], after[0, :8], atol=1e-5, rtol=0)
        assert ((moved - before).abs().amax(-1) > 1e-3).all()

    def test_one_token_at_a_time_as_all_at_once(self, name: str) -> None:
        model = with_prefix(causal_lm(name)).eval()
        ids = torch.randint(4, 96, (1, 12), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = model(input_ids=ids).logits
            cache, steps = None, []
            for start, end in ((0, 5), (5, 8), *((i, i + 1) for i in range(8, 12))):
                out = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "bloom"])
@pytest.mark.parametrize("config", [PTuningV2Config(), PrefixTuningConfig()])
def test_attention_that_takes_none_is_refused(name: str, config: DeepPromptConfig) -> None:
    with pytest.raises(UserError, match=f"the attention of {name} models takes no prefixes(.|\n)*prompt_tuning"):
        with_prefix(causal_lm(name), config)


def test_two_prefixes_together_see_both() -> None:
    inputs = inputs_of("llama", "causal_lm")
    model = model_of("llama", "causal_lm")
    methods = {"a": PTuningV2Config(num_virtual_tokens=2), "b": PrefixTuningConfig(num_virtual_tokens=3)}
    inject(model, methods, seed=0)
    disturbed(model)
    one = model_of("llama", "causal_lm")
    inject(one, {"c": PTuningV2Config(num_virtual_tokens=5)}, seed=0)
    a, b = ([p.flat() for path, p in prefixes(model).items() if f"tune_{name}" in path] for name in "ab")
    for prefix, first, second in zip(prefixes(one).values(), a, b, strict=True):
        prefix.rows.data = torch.cat([first, second]).detach()
    assert_close(logits_of(one, inputs), logits_of(model, inputs), atol=1e-6, rtol=1e-5)


def test_switched_between_as_in_chat_each_gives_its_own(tmp_path: Path) -> None:
    inputs = inputs_of("llama", "causal_lm")
    expected = {"none": logits_of(model_of("llama", "causal_lm"), inputs)}
    several = model_of("llama", "causal_lm")
    for seed, name in enumerate("ab"):
        model = model_of("llama", "causal_lm")
        inject(model, {name: PTuningV2Config(num_virtual_tokens=2 + seed)}, seed=seed)
        expected[name] = logits_of(disturbed(model, seed=seed), inputs)
        save_adapters(model, [name], tmp_path, base="somewhere")
        add_adapter(several, tmp_path / name, name)
    for name in ("a", "b", "none", "a"):
        switch_to(several, [] if name == "none" else [name])
        assert_close(logits_of(several, inputs), expected[name], atol=1e-5, rtol=1e-5)


def test_unloaded_the_base_is_as_it_was(tmp_path: Path) -> None:
    inputs = inputs_of("t5", "seq2seq")
    before = logits_of(model_of("t5", "seq2seq"), inputs)
    model = with_prefix(model_of("t5", "seq2seq"))
    save_adapters(model, [NAME], tmp_path, base="somewhere")
    wrapped = peft.PeftModel.from_pretrained(model_of("t5", "seq2seq"), str(tmp_path / NAME))
    with pytest.raises(UserError, match="cannot be merged: no weight of the model gives keys"):
        wrapped.merge_and_unload()
    plain = peft.PeftModel.from_pretrained(model_of("t5", "seq2seq"), str(tmp_path / NAME)).unload()
    assert not [path for path, module in plain.named_modules() if isinstance(module, PrefixLayer)]
    assert not [path for path, module in plain.named_modules() if PREFIXES in module.__dict__]
    assert_close(logits_of(plain, inputs), before, atol=1e-6, rtol=0)


def test_a_resumed_run_with_projection_is_one_without_a_stop(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["peft=prefix_tuning", "peft.prefix_tuning.encoder_hidden_size=8", "data.validation=null"]
    words += [
        "launch.num_processes=1",
        "train.eval_every=null",
        "train.save_every=2",
        "peft.prefix_tuning.num_virtual_tokens=3",
    ]

    def run(folder: str, steps: int) -> dict[str, Tensor]:
        config = compose_run(
            "smoke_sft_lora", [*words, f"train.max_steps={steps}", "train.lr_scheduler=constant"]
        ).config
        (tmp_path / folder).mkdir(exist_ok=True)
        main(config, tmp_path / folder)
        return load_file(tmp_path / folder / "adapter" / "prefix_tuning" / "adapter_model.safetensors")

    run("stopped", 4)
    resumed, whole = run("stopped", 6), run("whole", 6)
    assert resumed.keys() == whole.keys()
    for name, rows in whole.items():
        assert torch.equal(resumed[name], rows), name


def test_the_loss_falls_with_rows_of_their_own_in_few_layers() -> None:
    model = model_of("bert", "classification")
    inject(model, {NAME: PTuningV2Config(num_virtual_tokens=PREFIX, layers=[1])}, seed=0)
    first, *_, last = losses(model, inputs_of("bert", "classification"))
    assert last < first - 0.01
