"""SmolLM2-135M-Instruct and the movie reviews: the laws on real weights and real rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import batching
from torch.testing import assert_close

from tunecli.config.data import DataConfig
from tunecli.config.model import Attention, ModelConfig, Quantization
from tunecli.config.peft import LoraConfig
from tunecli.data.batching import collate
from tunecli.data.mixture import Mixture, build
from tunecli.data.tokens import Encoding
from tunecli.models.load import load_model, load_tokenizer
from tunecli.models.self_test import choose_policy
from tunecli.peft_methods.composition import inject

pytestmark = pytest.mark.slow


def model_config(assets: Path, **fields) -> ModelConfig:
    return ModelConfig(path=str(assets / "models" / "SmolLM2-135M-Instruct"), **fields)


@pytest.fixture(scope="module")
def tokenizer(assets: Path):
    return load_tokenizer(model_config(assets))


@pytest.fixture(scope="module")
def reviews(assets: Path, tokenizer) -> Mixture:
    path = str(assets / "data" / "movie_reviews" / "validation.jsonl")
    examples, _ = build(DataConfig(path=path), tokenizer, Encoding(max_length=512), show_progress=False)
    assert examples is not None
    return examples


def test_the_answer_and_its_end_are_what_is_learnt(reviews: Mixture, tokenizer) -> None:
    answers = {tokenizer.decode(each.input_ids[each.trained]) for each in (reviews[i] for i in range(len(reviews)))}
    assert answers == {"positive<|im_end|>", "negative<|im_end|>"}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, Quantization.none), (torch.bfloat16, Quantization.none), (torch.bfloat16, Quantization.nf4)],
)
def test_real_weights_are_padding_free(assets: Path, dtype: torch.dtype, kind: Quantization) -> None:
    lm = load_model(model_config(assets, quantization=kind), dtype=dtype, device=torch.device("cpu"))
    verdict = choose_policy(lm, Attention.auto)
    assert verdict.policy.packed, verdict.note


def test_loss_and_lora_gradients_equal_transformers_own(assets: Path, reviews: Mixture) -> None:
    lm = load_model(model_config(assets), dtype=torch.float32, device=torch.device("cpu"))
    inject(lm, {"lora": LoraConfig(r=4)}, seed=0)
    rows = range(6)
    examples = [(reviews[i].input_ids, reviews[i].trained) for i in rows]
    width = max(len(ids) for ids, _ in examples)
    ids = torch.stack([F.pad(ids, (0, width - len(ids))) for ids, _ in examples])
    mask = torch.stack([F.pad(torch.ones_like(i), (0, width - len(i))) for i, _ in examples])
    labels = torch.stack([F.pad(torch.where(t, i, -100), (0, width - len(i)), value=-100) for i, t in examples])
    theirs = lm(input_ids=ids, attention_mask=mask, labels=labels).loss
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in lm.named_parameters() if p.requires_grad}
    lm.zero_grad()

    policy = choose_policy(lm, Attention.packed).policy
    ours = -policy(collate(reviews, rows, batching())).mean()
    ours.backward()
    assert_close(ours.detach(), theirs.detach(), atol=1e-5, rtol=1e-5)
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    mine, others = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, expected))
    assert (mine - others).norm() <= 1e-4 * others.norm()  # 30 layers of fp32 rounding give 2e-5
