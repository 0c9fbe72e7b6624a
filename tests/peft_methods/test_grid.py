"""Laws that hold for every method on every architecture and task it applies to."""

from __future__ import annotations

import itertools
from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from architectures import CAUSAL_LMS, EVERY, GENERATING, inputs_of, logits_of, model_of, with_virtual_tokens
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import RandomExamples, batching
from torch.testing import assert_close
from transformers import PreTrainedModel
from tuners import disturbed, gradients, losses, switch, trained

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig, Quantization
from tunecli.config.peft import (
    PEFT_SCHEMAS,
    BitFitConfig,
    HoulsbyConfig,
    LnTuningConfig,
    LoraConfig,
    PeftConfig,
    PfeifferConfig,
    PromptTuningConfig,
)
from tunecli.config.peft_facts import FACTS
from tunecli.data.batching import collate
from tunecli.models.load import load_model
from tunecli.models.policy import Policy, use_packed_attention
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.saving import load_adapters, save_adapters
from tunecli.peft_methods.token_ids import token_ids

SMALL = {
    "lora": {"r": 4, "lora_alpha": 8},
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 16},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "oft": {"oft_block_size": 16},
    "bitfit": {"add_missing": True},
    "houlsby": {"bottleneck_size": 8},
    "pfeiffer": {"bottleneck_size": 8},
    "parallel": {"bottleneck_size": 8},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "p_tuning": {"template": "{v4} {prompt} {completion}", "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "p_tuning_v2": {"num_virtual_tokens": 4},
    "freeze": {"last_n_layers": 1, "norms": True, "embeddings": True},
}
"""Values that fit tiny models."""

VARIANTS = {
    "pfeiffer_invertible": ("pfeiffer", {"bottleneck_size": 8, "invertible": True}),
}
"""More rows: name -> method and its values."""

NO_CONV1D = ("loha", "lokr", "oft")
CASES = [
    (method, *pair)
    for method, pair in itertools.product([*PEFT_SCHEMAS, *VARIANTS], EVERY)
    if not (method in NO_CONV1D and pair[0] == "gpt2")
]
CHOSEN = {case for i, case in enumerate(CASES) if i % 7 == 0 or case[1:] == ("llama", "causal_lm")}
"""Without `-m grid`: every method on Llama, and of the rest a share that every method and architecture occurs in."""


def cases(pairs: list[tuple[str, str]] = EVERY, methods: list[str] | None = None) -> list:
    return [
        pytest.param(*case, marks=[] if case in CHOSEN else pytest.mark.grid, id="-".join(case))
        for case in CASES
        if case[1:] in pairs and (methods is None or case[0] in methods)
    ]


def methods_of(method: str) -> dict[str, PeftConfig]:
    kind, values = VARIANTS.get(method, (method, SMALL.get(method, {})))
    return {method: PEFT_SCHEMAS[kind](**values)}


def starts_as_base(method: str) -> bool:
    kind, _ = VARIANTS.get(method, (method, {}))
    return FACTS[kind].starts_as_base


def inputs_for(method: str, architecture: str, task: str) -> dict[str, torch.Tensor]:
    """With virtual tokens where the method has some."""
    ids = token_ids(methods_of(method), None)
    inputs = inputs_of(architecture, task)
    return with_virtual_tokens(inputs, ids[method]) if ids else inputs


def injected(method: str, architecture: str, task: str) -> PreTrainedModel:
    model = model_of(architecture, task)
    inject(model, methods_of(method), seed=0)
    return model


@pytest.mark.parametrize(("method", "architecture", "task"), cases())
class TestEverywhere:
    def test_it_starts_as_the_base_and_only_it_is_trained(self, method: str, architecture: str, task: str) -> None:
        model, inputs = model_of(architecture, task), inputs_of(architecture, task)
        before = logits_of(model, inputs)
        base = {id(parameter) for parameter in model.parameters()}
        inject(model, methods_of(method), seed=0)
        if starts_as_base(method):
            assert_close(logits_of(model, inputs), before, atol=2e-6, rtol=0)
        assert not [name for name, parameter in trained(model).items() if id(parameter) in base]
        found = gradients(model, inputs_for(method, architecture, task))
        assert any(gradient.abs().max() > 0 for gradient in found.values())
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    def test_saved_equals_loaded_also_by_plain_peft(
        self, method: str, architecture: str, task: str, tmp_path: Path
    ) -> None:
        inputs = inputs_for(method, architecture, task)
        model = disturbed(injected(method, architecture, task))
        expected = logits_of(model, inputs)
        save_adapters(model, [method], tmp_path, base="somewhere")
        ours = model_of(architecture, task)
        assert load_adapters(ours, [tmp_path / method]) == [method]
        assert_close(logits_of(ours, inputs), expected, atol=1e-5, rtol=1e-5)
        theirs = peft.PeftModel.from_pretrained(model_of(architecture, task), str(tmp_path / method))
        assert_close(logits_of(theirs.base_model.model, inputs), expected, atol=1e-5, rtol=1e-5)

    def test_switched_off_it_gives_the_base(self, method: str, architecture: str, task: str) -> None:
        inputs = inputs_of(architecture, task)
        before = logits_of(model_of(architecture, task), inputs)
        model = disturbed(injected(method, architecture, task))
        prompted = inputs_for(method, architecture, task)
        assert not torch.allclose(logits_of(model, prompted)[:, -1], before[:, -1], atol=1e-3)
        switch(model, on=False)
        assert_close(logits_of(model, inputs), before, atol=1e-6, rtol=0)
        if prompted["input_ids"].shape != inputs["input_ids"].shape:
            with pytest.raises(ValueError, match="virtual tokens"):
                logits_of(model, prompted)

    def test_the_loss_falls(self, method: str, architecture: str, task: str) -> None:
        first, *_, last = losses(injected(method, architecture, task), inputs_for(method, architecture, task))
        assert last < first - 0.01

    def test_checkpointed_gradients_are_the_same(self, method: str, architecture: str, task: str) -> None:
        model, inputs = disturbed(injected(method, architecture, task)), inputs_for(method, architecture, task)
        plain = gradients(model, inputs)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(model, inputs)
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            assert_close(again[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "architecture", "task"), cases(GENERATING))
def test_generated_with_a_cache_as_without(method: str, architecture: str, task: str) -> None:
    model, inputs = disturbed(injected(method, architecture, task)).eval(), inputs_for(method, architecture, task)
    ids = {"input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with_cache = model.generate(**ids, **settings, use_cache=True)
    assert torch.equal(with_cache, model.generate(**ids, **settings, use_cache=False))
    if task == "causal_lm":  # others give absolute positions to what is padded on the left
        alone = model.generate(input_ids=ids["input_ids"][1:, 3:], **settings)
        assert torch.equal(alone[0, -6:], with_cache[1, -6:])


MERGING = [method for method, facts in FACTS.items() if facts.merges]


@pytest.mark.parametrize(("method", "architecture", "task"), cases(methods=MERGING))
def test_merged_equals_unmerged(method: str, architecture: str, task: str) -> None:
    model, inputs = disturbed(injected(method, architecture, task)), inputs_of(architecture, task)
    expected = logits_of(model, inputs)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    assert_close(logits_of(model, inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_the_seed_alone_decides_where_it_starts(method: str) -> None:
    def start(seed: int) -> torch.Tensor:
        model = model_of("llama", "causal_lm")
        torch.rand(seed + 1)  # what the process drew before must not matter
        inject(model, methods_of(method), seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(start(0), start(0))


@pytest.mark.parametrize("method", PEFT_SCHEMAS)
def test_what_is_trained_is_fp32_on_a_bf16_base(method: str) -> None:
    model, inputs = model_of("llama", "causal_lm").bfloat16(), inputs_for(method, "llama", "causal_lm")
    inject(model, methods_of(method), seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert all(gradient.isfinite().all() for gradient in gradients(model, inputs).values())
    assert logits_of(model, inputs).isfinite().all()  # without autocast, as in chat


@pytest.mark.parametrize("method", NO_CONV1D)
def test_layers_that_a_method_cannot_adapt_are_refused(method: str) -> None:
    with pytest.raises(UserError, match=rf"peft\.{method}\.method: (.|\n)*fix: lora"):
        injected(method, "gpt2", "causal_lm")


@pytest.mark.parametrize(("method", "architecture", "task"), cases(CAUSAL_LMS))
def test_packed_equals_padded_equals_unpadded(method: str, architecture: str, task: str) -> None:
    model = disturbed(injected(method, architecture, task)).eval()
    examples = RandomExamples([9, 4, 7], virtual=token_ids(methods_of(method), None).get(method, []))
    with torch.no_grad():
        padded = Policy(model, packed=False)(collate(examples, range(3), batching(packed=False)))
        alone = [Policy(model, packed=False)(collate(examples, [i], batching(packed=False))) for i in range(3)]
        use_packed_attention(model)
        packed = Policy(model, packed=True)(collate(examples, range(3), batching()))
    assert_close(padded, torch.cat(alone), atol=2e-5, rtol=0)
    assert_close(packed, torch.cat(alone), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", [Quantization.nf4, Quantization.int8])
@pytest.mark.parametrize("method", [*(method for method, facts in FACTS.items() if facts.quantized), *VARIANTS])
def test_a_quantized_base_is_trained_and_an_evaluation_leaves_gradients_alone(
    method: str, kind: Quantization
) -> None:
    config, inputs = ModelConfig(path="builtin:tiny_llama", quantization=kind), inputs_of("llama", "causal_lm")
    model = load_model(config, dtype=torch.float32, device=torch.device("cpu"))
    before = logits_of(model, inputs)
    inject(model, methods_of(method), seed=0)
    if starts_as_base(method):
        assert_close(logits_of(model, inputs), before, atol=1e-5, rtol=0)
    prompted = inputs_for(method, "llama", "causal_lm")
    first, *_, last = losses(model, prompted)
    assert last < first - 0.01
    expected = gradients(model, prompted)
    logits_of(model, prompted)
    for name, gradient in gradients(model, prompted).items():
        assert torch.equal(gradient, expected[name]), name
    switch(model, on=False)
    assert_close(logits_of(model, inputs), before, atol=1e-5, rtol=0)


UNQUANTIZED = [method for method in PEFT_SCHEMAS if not FACTS[method].quantized]


@pytest.mark.parametrize("method", UNQUANTIZED)
def test_others_are_refused_on_a_quantized_base(method: str) -> None:
    words = [f"peft.{method}.norms=true"] if method == "freeze" else []
    composed = compose_run("smoke_qlora", [f"peft={method}", *words])
    (problem,) = find_problems(composed.config)
    assert problem.where == f"peft.{method}" and "does not work on nf4 weights" in problem.what


GPT3 = {"hidden_size": 12288, "num_hidden_layers": 96, "num_attention_heads": 96, "intermediate_size": 49152}
LLAMA_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
LLAMA_65B = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 22016}
ROBERTA_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
BERT_LARGE = ROBERTA_LARGE | {"vocab_size": 28996}  # cased, as Ben Zaken et al. and Houlsby et al. have it
QV, BERT_QV = ["q_proj", "v_proj"], ["query", "value"]
HU_2023 = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("shape", "method", "millions"),
    [
        (T.LlamaConfig(**GPT3), LoraConfig(r=1, target_modules=QV), 4.7),
        (T.LlamaConfig(**GPT3), LoraConfig(r=8, target_modules=QV), 37.7),
        (T.RobertaConfig(), LoraConfig(r=8, target_modules=BERT_QV), 0.3),
        (T.RobertaConfig(**ROBERTA_LARGE), LoraConfig(r=8, target_modules=BERT_QV), 0.8),
        (T.LlamaConfig(**LLAMA_65B), LoraConfig(r=64), 800),
        (T.T5Config(**T5_XXL), PromptTuningConfig(num_virtual_tokens=100), 0.4096),
    ],
    ids=["gpt3 r=1", "gpt3 r=8", "roberta-base", "roberta-large", "llama-65b", "t5-xxl"],
)
def test_it_is_as_large_as_in_the_papers(shape: T.PreTrainedConfig, method: PeftConfig, millions: float) -> None:
    """Hu et al., 2021, tables 2 and 18; Dettmers et al., 2023; Lester et al., 2021, section 3."""
    auto = T.AutoModelForSeq2SeqLM if shape.is_encoder_decoder else T.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(shape)
        inject(model, {"x": method}, seed=0)
    count = sum(parameter.numel() for parameter in trained(model).values())
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(
    ("shape", "of", "methods", "percent"),
    [
        (T.LlamaConfig(**LLAMA_7B), "", [LoraConfig(r=32, target_modules=HU_2023)], "0.83"),
        (T.LlamaConfig(**LLAMA_7B), "", [PfeifferConfig(bottleneck_size=256)], "0.99"),
        (T.BertConfig(), "bert", [BitFitConfig()], "0.09"),
        (T.BertConfig(**BERT_LARGE), "bert", [BitFitConfig()], "0.08"),
        (T.BertConfig(**BERT_LARGE), "bert.encoder", [HoulsbyConfig(bottleneck_size=64), LnTuningConfig()], "2.1"),
    ],
    ids=["llama-7b lora", "llama-7b series", "bert-base bitfit", "bert-large bitfit", "bert-large houlsby"],
)
def test_it_is_as_large_a_share_as_in_the_papers(
    shape: T.PreTrainedConfig, of: str, methods: list[PeftConfig], percent: str
) -> None:
    """Of all parameters, the new ones too: Hu et al., 2023 (LLM-Adapters), table 3. Of BERT, its head aside: Ben
    Zaken et al., 2022, tables 1 and 2. Of BERT's layers, without its embeddings, and with the norms that they train
    too: Houlsby et al., 2019, table 1 (adapters of size 64)."""
    model_class = T.AutoModelForSequenceClassification if of else T.AutoModelForCausalLM
    with torch.device("meta"):
        model = model_class.from_config(shape)
        inject(model, {method.method: method for method in methods}, seed=0)
    total = sum(parameter.numel() for parameter in model.get_submodule(of).parameters())
    count = sum(parameter.numel() for parameter in trained(model).values())
    assert f"{100 * count / total:.{len(percent) - 2}f}" == percent
