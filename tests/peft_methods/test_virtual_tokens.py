"""Prompt tuning and P-tuning: where virtual tokens start, what makes them, and what models do with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as T
from architectures import inputs_of, logits_of, model_of, with_virtual_tokens
from peft import PromptEncoderConfig
from peft.tuners.p_tuning.model import PromptEncoder as PeftPromptEncoder
from safetensors.torch import load_file
from tiny import CONFIGS, SHAPE, causal_lm
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.testing import assert_close
from tuners import disturbed, trained

from tunecli.config.errors import UserError
from tunecli.config.peft import Encoder, PeftConfig, PromptInit, PromptTokens, PromptTuningConfig, PTuningConfig
from tunecli.config.virtual import FIRST_VIRTUAL
from tunecli.data.examples import Columns
from tunecli.data.text_encoder import TextEncoder
from tunecli.data.tokens import Encoding
from tunecli.data.virtual import filled
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.prompt_encoder import PromptEncoder
from tunecli.peft_methods.saving import save_adapters
from tunecli.peft_methods.token_ids import places_of_virtual_tokens, token_ids
from tunecli.peft_methods.virtual_tokens import VirtualTokens, VirtualTokensLayer

NAME = "prompt"
COUNT = 6


def bert_like(unused: int = 8, size: int = 96) -> T.PreTrainedTokenizerFast:
    """A vocabulary as BERT's, with `unused` tokens that stand for nothing and the words w0, w1, ..."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(unused)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["it", "was", "good", "bad", "."]
    words += [f"w{i}" for i in range(size - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    backend.post_processor = processors.BertProcessing(*ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return T.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def rows_of(
    model: T.PreTrainedModel, config: PeftConfig, *, seed: int = 0, tokenizer: T.PreTrainedTokenizerBase | None = None
) -> Tensor:
    """What the virtual tokens of `config` start as in `model`: [count, width]."""
    inject(model, {NAME: config}, seed=seed, tokenizer=tokenizer)
    (tokens,) = (module for module in model.modules() if isinstance(module, VirtualTokens))
    return tokens.encoder().detach()


def words_of(model: T.PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


class TestStarts:
    def test_random(self) -> None:
        """Uniform from -0.5 to 0.5 (Lester et al., 2021, 3.2 and footnote 3)."""
        config = PromptTuningConfig(num_virtual_tokens=200, init=PromptInit.random_uniform)
        rows = rows_of(causal_lm(), config, tokenizer=bert_like())
        assert -0.5 <= rows.min() < -0.49 and 0.49 < rows.max() <= 0.5
        assert abs(rows.mean()) < 0.01 and rows.std() == pytest.approx((1 / 12) ** 0.5, rel=0.02)

    def test_words_of_a_text_again_and_again(self) -> None:
        model, tokenizer = causal_lm(), bert_like()
        config = PromptTuningConfig(num_virtual_tokens=5, init=PromptInit.text, init_text="it was")
        words = words_of(model)[tokenizer.convert_tokens_to_ids(["it", "was", "it", "was", "it"])]
        assert torch.equal(rows_of(model, config, tokenizer=tokenizer), words)

    def test_a_longer_text_is_cut(self) -> None:
        model, tokenizer = causal_lm(), bert_like()
        config = PromptTuningConfig(num_virtual_tokens=2, init=PromptInit.text, init_text="good w1 w2 w3")
        words = words_of(model)[tokenizer.convert_tokens_to_ids(["good", "w1"])]
        assert torch.equal(rows_of(model, config, tokenizer=tokenizer), words)

    def test_labels_start_as_the_mean_of_their_words_and_the_others_as_drawn_ones(self) -> None:
        model, tokenizer = causal_lm(), bert_like()
        labels = {"init": PromptInit.labels, "init_labels": ["w3 w4", "bad"]}
        words = words_of(model)
        rows = rows_of(model, PromptTuningConfig(num_virtual_tokens=4, **labels), tokenizer=tokenizer)
        ids = tokenizer.convert_tokens_to_ids(["w3", "w4", "bad"])
        assert_close(rows[0], words[ids[:2]].mean(0))
        assert torch.equal(rows[1], words[ids[2]])
        assert all((words == row).all(1).any() for row in rows[2:])

    @pytest.mark.parametrize("top_k", [COUNT, 20])
    def test_drawn_from_the_most_frequent_words_none_twice(self, top_k: int) -> None:
        model, tokenizer = causal_lm(), bert_like()
        words = words_of(model)
        rows = rows_of(model, PromptTuningConfig(num_virtual_tokens=COUNT, init_top_k=top_k), tokenizer=tokenizer)
        drawn = [int((words == row).all(1).nonzero()) for row in rows]
        frequent = [token for token in range(13, 96) if token != 17][:top_k]  # before: special and unused; 17: "."
        assert len(set(drawn)) == COUNT and set(drawn) <= set(frequent)

    def test_the_seed_alone_decides(self) -> None:
        torch.manual_seed(99)
        config, tokenizer = PromptTuningConfig(num_virtual_tokens=COUNT), bert_like()
        first, again = (rows_of(causal_lm(), config, seed=3, tokenizer=tokenizer) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, rows_of(causal_lm(), config, seed=4, tokenizer=tokenizer))

    def test_more_tokens_than_words_to_draw_from_is_refused(self) -> None:
        config = PromptTuningConfig(num_virtual_tokens=COUNT, init_top_k=3)
        with pytest.raises(UserError, match=f"peft.{NAME}.init_top_k: 3 words, and {COUNT} are to be drawn"):
            rows_of(causal_lm(), config, tokenizer=bert_like())

    @pytest.mark.parametrize(
        ("values", "key"),
        [({"init": PromptInit.text, "init_text": " "}, "init_text"), ({"init_labels": [" "]}, "init_labels")],
    )
    def test_words_without_tokens_are_refused(self, values: dict, key: str) -> None:
        config = PromptTuningConfig(**({"init": PromptInit.labels} | values))
        with pytest.raises(UserError, match=f"peft.{NAME}.{key}: ' ' has no tokens"):
            rows_of(causal_lm(), config, tokenizer=bert_like())


class TestEncoders:
    def test_the_lstm_is_that_of_peft(self) -> None:
        """Which counts its hidden size for each direction, as neither the paper's code nor ours does."""
        saved = PromptEncoderConfig(
            num_virtual_tokens=COUNT, token_dim=64, num_transformer_submodules=1, num_layers=2, num_attention_heads=4,
            encoder_reparameterization_type="LSTM", encoder_hidden_size=16, encoder_num_layers=2, encoder_dropout=0.0,
        )  # fmt: skip
        theirs, ours = PeftPromptEncoder(saved), PromptEncoder(COUNT, 64, "lstm", hidden_size=32)
        ours.embedding.data = theirs.embedding.weight.detach()
        ours.lstm.load_state_dict(theirs.lstm_head.state_dict())
        ours.network.load_state_dict(theirs.mlp_head.state_dict())
        assert_close(ours(), theirs(torch.arange(COUNT)[None])[0])
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    @pytest.mark.parametrize("kind", ["mlp", "lstm"])
    def test_a_network_starts_from_a_normal_embedding(self, kind: str) -> None:
        """torch's own for embeddings, which the code of both papers leaves as it is."""
        torch.manual_seed(0)
        embedding = PromptEncoder(200, 64, kind).embedding.detach()
        assert abs(embedding.mean()) < 0.03 and embedding.std() == pytest.approx(1, rel=0.02)

    def test_the_mlp_is_that_of_prefix_tuning(self) -> None:
        """One hidden layer with tanh (Li & Liang, 2021); peft's own has two with ReLU."""
        made = PromptEncoder(COUNT, 64, "mlp", hidden_size=16)
        first, _, second = made.network
        hidden = torch.tanh(made.embedding @ first.weight.T + first.bias)
        assert_close(made(), hidden @ second.weight.T + second.bias)
        assert (first.out_features, second.out_features) == (16, 64)

    @pytest.mark.parametrize("encoder", Encoder)
    def test_the_result_is_what_it_makes(self, encoder: Encoder, tmp_path: Path) -> None:
        model = causal_lm()
        config = PTuningConfig(template="{v2} {prompt} {v4} {completion}", encoder=encoder, encoder_hidden_size=8)
        inject(model, {NAME: config}, seed=0)
        (tokens,) = (module for module in disturbed(model).modules() if isinstance(module, VirtualTokens))
        save_adapters(model, [NAME], tmp_path, base="somewhere")
        (saved,) = load_file(tmp_path / NAME / "adapter_model.safetensors").values()
        assert_close(saved, tokens.encoder().detach(), atol=0, rtol=0)
        noted = json.loads((tmp_path / NAME / "adapter_config.json").read_text())
        assert (noted["encoder"], noted["template"], len(noted["token_ids"])) == ("none", config.template, 6)


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        (lambda: T.BartForConditionalGeneration(_bart()), 8.0),
        (lambda: causal_lm("gemma3"), 8.0),
        (lambda: causal_lm("llama"), 1.0),
    ],
    ids=["bart", "gemma3", "llama"],
)
def test_a_virtual_token_that_starts_as_a_word_is_that_word(model, scale: float) -> None:
    """Also where the model multiplies its embeddings: by the root of their width, 64."""
    lm, tokenizer = model(), bert_like()
    config = PromptTuningConfig(num_virtual_tokens=2, init=PromptInit.text, init_text="it was")
    words = words_of(lm)
    inject(lm, {NAME: config}, seed=0, tokenizer=tokenizer)
    (layer,) = {module for module in lm.modules() if isinstance(module, VirtualTokensLayer)}
    real = torch.tensor([tokenizer.convert_tokens_to_ids(["it", "was"])])
    virtual = torch.tensor([[FIRST_VIRTUAL, FIRST_VIRTUAL + 1]])
    assert_close(layer(virtual), layer(real), atol=0, rtol=0)
    assert_close(layer(real)[0], scale * words[real[0]])


def _bart() -> T.BartConfig:
    return T.BartConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=96, scale_embedding=True,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", [*CONFIGS, "gemma2", "bloom"])
def test_words_instead_of_virtual_tokens_that_are_the_same_give_the_same(architecture: str) -> None:
    """On every architecture, those without prefixes included."""
    model, tokenizer = causal_lm(architecture), bert_like()
    ids = tokenizer.convert_tokens_to_ids(["w1", "w2", "it"])
    inputs = inputs_of("llama", "causal_lm")
    expected = logits_of(model, with_virtual_tokens(inputs, ids))
    config = PromptTuningConfig(num_virtual_tokens=3, init=PromptInit.text, init_text="w1 w2 it")
    inject(model, {NAME: config}, seed=0, tokenizer=tokenizer)
    virtual = list(range(FIRST_VIRTUAL, FIRST_VIRTUAL + 3))
    assert_close(logits_of(model, with_virtual_tokens(inputs, virtual)), expected, atol=1e-6, rtol=0)


class TestUnusedTokens:
    CONFIG = PTuningConfig(template="{v2} {text} it was {v1} {label}", tokens=PromptTokens.unused)

    def test_they_are_the_first_of_the_vocabulary_and_only_their_embeddings_change(self) -> None:
        tokenizer = bert_like()
        assert token_ids({NAME: self.CONFIG}, tokenizer) == {NAME: [1, 2, 3]}
        model = model_of("bert", "classification")
        before = logits_of(model, inputs_of("bert", "classification"))
        weight = words_of(model)
        inject(model, {NAME: self.CONFIG}, seed=0, tokenizer=tokenizer)
        without = {key: value.clone() for key, value in inputs_of("bert", "classification").items()}
        assert (without["input_ids"].ge(4) | without["input_ids"].eq(0)).all()
        assert_close(logits_of(model, without), before, atol=2e-6, rtol=0)
        without["input_ids"][:, 1:4] = torch.tensor([1, 2, 3])
        assert not torch.allclose(logits_of(model, without), before, atol=1e-3)
        assert torch.equal(words_of(model), weight)

    def test_two_entries_share_none(self) -> None:
        methods = {"a": self.CONFIG, "b": PromptTuningConfig(num_virtual_tokens=2), "c": self.CONFIG}
        ids = token_ids(methods, bert_like())
        assert ids["a"] == [1, 2, 3] and ids["c"] == [4, 5, 6]
        assert min(ids["b"]) >= FIRST_VIRTUAL

    def test_too_few_are_refused(self) -> None:
        with pytest.raises(
            UserError, match=r"peft.prompt.tokens: the vocabulary has 2 unused tokens, and 3(.|\n)*=virtual"
        ):
            token_ids({NAME: self.CONFIG}, bert_like(unused=2))

    def test_the_names_that_vocabularies_have_for_them(self) -> None:
        for name in ("[unused0]", "<unused99>", "<|reserved_special_token_12|>", "madeupword0001"):
            vocabulary = Tokenizer(models.WordLevel({"a": 0, name: 1, "unused": 2}, unk_token="a"))
            tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=vocabulary)
            config = PTuningConfig(template="{v1} {text} {label}", tokens=PromptTokens.unused)
            assert token_ids({NAME: config}, tokenizer) == {NAME: [1]}


@pytest.mark.parametrize("tokens", PromptTokens)
def test_a_masked_language_model_learns_the_label_words_of_a_template(tokens: PromptTokens) -> None:
    """Liu et al., 2021, 3.3: the base is frozen, a word stands for each class, and the mask is to be it."""
    tokenizer = bert_like()
    torch.manual_seed(0)
    model = T.BertForMaskedLM(T.BertConfig(**SHAPE, initializer_range=0.3, hidden_dropout_prob=0.0))
    config = PTuningConfig(
        template="{v4} {text} {v4} it was {mask} .", encoder=Encoder.mlp, encoder_hidden_size=32, tokens=tokens
    )
    inject(model, {NAME: config}, seed=0, tokenizer=tokenizer)
    encoding = Encoding(**places_of_virtual_tokens({NAME: config}, tokenizer, adapter_column=None))
    rows = [Columns({"text": text, "label": label}) for text, label in (("w1 " * 8, "good"), ("w3 " * 8, "bad"))]
    found = [filled(row, encoding, TextEncoder(tokenizer)) for row in rows]
    ids = torch.tensor([each.input_ids for each in found])
    (place,) = {each.answer[0] for each in found}
    right = torch.tensor([each.answer_ids[0] for each in found])
    labels = torch.full_like(ids, -100)
    labels[:, place] = right
    optimizer = torch.optim.AdamW(trained(model).values(), lr=2e-2)
    losses = []
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    predicted = logits_of(model, {"input_ids": ids})[:, place].argmax(-1)
    assert predicted.tolist() == right.tolist()


def test_two_prompts_of_different_names_stand_one_behind_another() -> None:
    methods = {"first": PromptTuningConfig(num_virtual_tokens=2), "second": PromptTuningConfig(num_virtual_tokens=3)}
    ids = token_ids(methods, None)
    places = places_of_virtual_tokens(methods, bert_like(), adapter_column=None)
    assert places["before"] == (*ids["first"], *ids["second"])
    inputs = with_virtual_tokens(inputs_of("llama", "causal_lm"), list(places["before"]))
    model = causal_lm()
    inject(model, methods, seed=0)
    expected = logits_of(disturbed(model), inputs)
    one = causal_lm()
    inject(one, {NAME: PromptTuningConfig(num_virtual_tokens=5)}, seed=0)
    parts = [module.encoder() for module in model.modules() if isinstance(module, VirtualTokens)]
    (whole,) = (module for module in one.modules() if isinstance(module, VirtualTokens))
    whole.encoder.embedding.data = torch.cat(parts).detach()
    assert_close(logits_of(one, inputs), expected, atol=1e-6, rtol=0)


def test_two_prompts_start_differently() -> None:
    methods = {"first": PromptTuningConfig(num_virtual_tokens=3), "second": PromptTuningConfig(num_virtual_tokens=3)}
    model = causal_lm()
    inject(model, methods, seed=0, tokenizer=bert_like())
    a, b = (module.encoder() for module in model.modules() if isinstance(module, VirtualTokens))
    assert not torch.equal(a, b)


def test_the_encoder_of_t5_alone_looks_them_up_and_learns_them() -> None:
    model = model_of("t5", "tagging")
    inject(model, {NAME: PromptTuningConfig(num_virtual_tokens=COUNT)}, seed=0)
    (ids,) = token_ids({NAME: PromptTuningConfig(num_virtual_tokens=COUNT)}, None).values()
    model(**with_virtual_tokens(inputs_of("t5", "tagging"), ids)).loss.backward()
    (rows,) = (parameter for name, parameter in trained(model).items() if "virtual" in name)
    assert rows.grad.abs().sum(1).min() > 0
