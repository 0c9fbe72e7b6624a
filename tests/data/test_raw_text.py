"""Text and prompt with completion, without a chat template; and the chat templates that the package brings."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tunecli.config.errors import UserError
from tunecli.data.examples import Messages, PromptCompletion, Text, TooLong, Unusable
from tunecli.data.templates import apply_chat_template_choice
from tunecli.data.tokenize import Encoding, Tokens, tokenize


def encode(example, tokenizer, **options) -> Tokens:
    (item,) = tokenize(example, tokenizer, Encoding(**options))
    return item


def trained(item: Tokens) -> list[int]:
    return [token for token, target in zip(item.input_ids, item.trained, strict=True) if target]


def sentencepiece_like(*, adds_end: bool = False) -> PreTrainedTokenizerFast:
    """Words with the space before them, and one put before every text, as in Llama 2; begins texts with <s>."""
    words = ["▁what", "▁is", "▁two", "two", "<unk>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>", "[/INST]"])
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    single = "<s> $A </s>" if adds_end else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_completion_and_end_are_trained_also_where_padding_is_the_end_token(plain_tokenizer):
    item = encode(PromptCompletion("Answer: 你好", " hello 😀"), plain_tokenizer)
    assert plain_tokenizer.pad_token_id == plain_tokenizer.eos_token_id
    assert plain_tokenizer.decode(item.input_ids) == "<s>Answer: 你好 hello 😀</s>"
    assert plain_tokenizer.decode(trained(item)) == " hello 😀</s>"


def test_end_is_not_doubled(plain_tokenizer):
    item = encode(PromptCompletion("Answer:", " hello</s>"), plain_tokenizer)
    assert item.input_ids.count(plain_tokenizer.eos_token_id) == 1
    assert trained(item)[-1] == plain_tokenizer.eos_token_id


def test_prompt_has_the_tokens_of_inference_where_a_token_would_cross(plain_tokenizer):
    prompt = "Answer: "
    item = encode(PromptCompletion(prompt, "hello"), plain_tokenizer)
    alone = plain_tokenizer(prompt)["input_ids"]
    assert plain_tokenizer(prompt + "hello")["input_ids"][: len(alone)] != alone
    assert item.input_ids[: len(alone)] == alone
    assert plain_tokenizer.decode(trained(item)) == "hello</s>"


@pytest.mark.parametrize("adds_end", [False, True])
def test_sentencepiece_puts_no_space_into_the_middle_and_no_end_after_the_prompt(adds_end):
    tokenizer = sentencepiece_like(adds_end=adds_end)
    item = encode(PromptCompletion("what is[/INST]", "two"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(item.input_ids) == ["<s>", "▁what", "▁is", "[/INST]", "two", "</s>"]
    assert tokenizer.convert_ids_to_tokens(trained(item)) == ["two", "</s>"]


def test_text_is_trained_from_its_second_token_to_its_end(plain_tokenizer):
    item = encode(Text("hello world"), plain_tokenizer)
    assert plain_tokenizer.decode(item.input_ids) == "<s>hello world</s>"
    assert item.trained == [False] + [True] * (len(item.input_ids) - 1)


def test_train_on_prompt(plain_tokenizer):
    item = encode(PromptCompletion("Answer:", " hello"), plain_tokenizer, train_on_prompt=True)
    assert item.trained == [False] + [True] * (len(item.input_ids) - 1)


def test_nothing_to_train(family, plain_tokenizer):
    with pytest.raises(Unusable, match="empty"):
        encode(Text(""), family("qwen3"))
    with pytest.raises(TooLong, match="prompt alone fills data.max_length=3"):
        encode(PromptCompletion("a long prompt of words", "x"), plain_tokenizer, max_length=3)


def test_chatml_for_a_tokenizer_without_template(plain_tokenizer):
    apply_chat_template_choice(plain_tokenizer, "chatml")
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world"},
    ]
    item = encode(Messages(messages), plain_tokenizer)
    assert plain_tokenizer.decode(item.input_ids) == (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nworld<|im_end|></s>\n"
    )
    assert plain_tokenizer.decode(trained(item)) == "world<|im_end|></s>"


def test_chatml_is_chatml_where_the_tokens_exist(family):
    own, ours = family("smollm2"), family("smollm2")
    apply_chat_template_choice(ours, "chatml")
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "more"},
    ]
    for prompt in (False, True):
        own_text = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == own_text


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_alpaca_template(plain_tokenizer, system):
    apply_chat_template_choice(plain_tokenizer, "alpaca")
    start = [] if system is None else [{"role": "system", "content": system}]
    messages = [*start, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    item = encode(Messages(messages), plain_tokenizer)
    preamble = system or (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    expected = f"<s>{preamble}\n\n### Instruction:\nhello\n\n### Response:\nworld</s>\n\n"
    assert plain_tokenizer.decode(item.input_ids) == expected
    assert plain_tokenizer.decode(trained(item)) == "world</s>"


def test_template_choice(plain_tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}é", encoding="utf-8")
    apply_chat_template_choice(plain_tokenizer, str(file))
    assert plain_tokenizer.chat_template == "{{ messages[0].content }}é"
    apply_chat_template_choice(plain_tokenizer, None)
    assert plain_tokenizer.chat_template == "{{ messages[0].content }}é"
    with pytest.raises(UserError, match="no chat template 'chatlm'.*\n.*chatml"):
        apply_chat_template_choice(plain_tokenizer, "chatlm")
    with pytest.raises(UserError, match="missing.jinja"):
        apply_chat_template_choice(plain_tokenizer, str(tmp_path / "missing.jinja"))
