"""Weights and tokenizer by Hub id, local folder, run directory or `builtin:` name."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tunecli.config.errors import UserError
from tunecli.config.model import DType, ModelConfig
from tunecli.config.stage import ProblemType, Task
from tunecli.engine.hub_name import refuse_missing
from tunecli.models import builtin
from tunecli.models.quantization import HEADS, keep_cpu_weights_unpacked, quantization_config


def resolve_path(path: str) -> str:
    """The folder or Hub id that `model.path` stands for.

    Raises:
        UserError: a run directory without a whole model in it, an unknown builtin model, or nothing is there.
    """
    if path.startswith(builtin.PREFIX):
        return str(builtin.materialize(path.removeprefix(builtin.PREFIX)))
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        if (folder / "model" / "config.json").is_file():
            return str(folder / "model")
        raise UserError(
            f"{path} is a run directory that holds no whole model",
            where="model.path",
            fix="name a full fine-tuning run that has ended, or the base model; peft.NAME.init_from takes adapters",
        )
    refuse_missing(path, "model.path")
    return str(folder) if folder.exists() else path


def num_parameters(model: nn.Module) -> int:
    """Of weights packed two to a byte, both are counted."""
    return sum(p.numel() * (2 if type(p).__name__ == "Params4bit" else 1) for p in model.parameters())


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; a missing pad token becomes the end-of-text token (it is never learnt from)."""
    path = resolve_path(config.path)
    tokenizer = _from_pretrained(
        AutoTokenizer, path, config, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad_apart(tokenizer: PreTrainedTokenizerBase, stops: Collection[int]) -> None:
    """Give `tokenizer` a token for padding that no text ends with: transformers' classifiers look for the last token
    of a text that is none.

    Where the one that it has is among `stops` or its end-of-text token, another special one that chats do not use is
    taken, or else the last of its vocabulary.
    """
    ends = {tokenizer.eos_token_id, *stops}
    if tokenizer.pad_token_id not in (None, *ends):
        return
    special = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    used = f"{tokenizer.chat_template or ''}{tokenizer.bos_token or ''}"
    free = [token for token, text in special.items() if token not in ends and text not in used]
    named = [token for token in free if "pad" in special[token].lower()]
    other = [*named, *(token for token in free if token == tokenizer.unk_token_id), *free]
    ordinary = [token for token in range(len(tokenizer) - 1, -1, -1) if token not in ends]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens([*other, *ordinary][0])


def stop_tokens(config: ModelConfig) -> list[int]:
    """The ids at which the model's generation stops, besides the tokenizer's end-of-text token."""
    try:
        stops = GenerationConfig.from_pretrained(resolve_path(config.path), revision=config.revision).eos_token_id
    except OSError:
        return []
    return [stops] if isinstance(stops, int) else stops or []


CLASSES = {
    Task.causal_lm: AutoModelForCausalLM,
    Task.seq2seq_lm: AutoModelForSeq2SeqLM,
    Task.masked_lm: AutoModelForMaskedLM,
    Task.sequence_classification: AutoModelForSequenceClassification,
    Task.token_classification: AutoModelForTokenClassification,
}
PIPELINES = {
    Task.causal_lm: "text-generation",
    Task.seq2seq_lm: "text-generation",
    Task.masked_lm: "fill-mask",
    Task.sequence_classification: "text-classification",
    Task.token_classification: "token-classification",
}
"""What the Hub calls a model for each task, which is transformers' pipeline for it; for encoder-decoders transformers
have none since version 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a model that has labels gets a head for."""

    labels: list[str]
    problem_type: ProblemType
    seed: int
    """of the head's first weights"""

    @property
    def settings(self) -> dict[str, Any]:
        """In the words of transformers' configurations, which models are saved with."""
        problem = (
            "regression"
            if self.problem_type is ProblemType.regression
            else f"{self.problem_type.value}_classification"
        )
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "problem_type": problem,
        }


def load_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    task: Task = Task.causal_lm,
    head: Head | None = None,
) -> PreTrainedModel:
    """A model on `device` (or spread by `config.device_map`), weights from safetensors only.

    Args:
        dtype: of the weights that are not quantised; quantised layers compute in it.
        head: what it is to tell apart; a head that is stored with the model for these labels is kept. None: as
            stored.
    """
    quantization = quantization_config(
        config.quantization, double_quantization=config.double_quantization, compute_dtype=dtype
    )
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    placement = config.device_map or ({"": device} if quantization is not None or device.type != "cpu" else None)
    stored = None if head is None else _from_pretrained(AutoConfig, resolve_path(config.path), config, **source)
    with torch.random.fork_rng(devices=[]), _quiet_about(head):
        torch.manual_seed(head.seed if head is not None else 0)
        model, found = _from_pretrained(
            CLASSES[task],
            resolve_path(config.path),
            config,
            **source,
            dtype=dtype,
            use_safetensors=True,
            device_map=placement,
            quantization_config=quantization,
            output_loading_info=True,
            **(head.settings | {"ignore_mismatched_sizes": True} if head is not None else {}),
        )
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if head is not None and not _knows(stored, head):
        new |= _forget_head(model, head)
    model.new_weights = sorted(new)  # which no file had, or only for other labels
    model.config.architectures = [type(model).__name__]
    keep_cpu_weights_unpacked(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def config_on_disk(config: ModelConfig) -> PretrainedConfig | None:
    """What the model says of its shape; None: it would have to be fetched."""
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with _explained(AutoConfig, config):
        try:
            return AutoConfig.from_pretrained(resolve_path(config.path), local_files_only=True, **source)
        except OSError:
            return None


def outline(
    config: ModelConfig, shape: PretrainedConfig, *, task: Task = Task.causal_lm, head: Head | None = None
) -> PreTrainedModel:
    """The model that `load_model` gives, on the meta device: its layers and their shapes, no weights.

    Args:
        shape: the model's own, without the head.
        head: None: as in `shape`.

    Raises:
        UserError: transformers has no model of this kind for the task.
    """
    shape = copy.deepcopy(shape)
    for name, value in (head.settings if head is not None else {}).items():
        setattr(shape, name, value)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _explained(CLASSES[task], config):
        return CLASSES[task].from_config(shape, trust_remote_code=config.trust_remote_code)


def _knows(stored: PretrainedConfig, head: Head) -> bool:
    """Whether a stored head is for these labels in this order; one that names none is taken for any."""
    names = [stored.id2label.get(number) for number in range(len(head.labels))]
    unnamed = [f"LABEL_{number}" for number in range(len(head.labels))]
    return len(stored.id2label) == len(head.labels) and names in (head.labels, unnamed)


def _forget_head(model: PreTrainedModel, head: Head) -> set[str]:
    """Give the layers that score labels their first weights again. Returns the names of what is new."""
    scorers = {
        name: module
        for name, module in model.named_modules()
        if name.partition(".")[0] in HEADS and getattr(module, "out_features", 0) == len(head.labels)
    }
    generator = torch.Generator().manual_seed(head.seed)
    deviation = getattr(model.config, "initializer_range", 0.02)
    for module in scorers.values():
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
            if module.bias is not None:
                module.bias.zero_()
    return {f"{name}.{key}" for name, module in scorers.items() for key, _ in module.named_parameters()}


@contextmanager
def _quiet_about(head: Head | None) -> Iterator[None]:
    """A head that is new is no reason for transformers to warn that weights are missing."""
    before = logging.get_verbosity()
    if head is not None:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def task_of(config: PretrainedConfig) -> Task:
    """What a stored model is for, told from the name of its class."""
    name = next(iter(config.architectures or ()), "")
    ends = {
        "SequenceClassification": Task.sequence_classification,
        "TokenClassification": Task.token_classification,
        "MaskedLM": Task.masked_lm,
    }
    language_model = Task.seq2seq_lm if config.is_encoder_decoder else Task.causal_lm
    return next((task for end, task in ends.items() if name.endswith(end)), language_model)


def check_kind(config: ModelConfig, task: Task) -> None:
    """Raises UserError: an encoder-decoder for a stage that trains decoders, or the other way round."""
    if task not in (Task.causal_lm, Task.seq2seq_lm):
        return
    found = _from_pretrained(
        AutoConfig,
        resolve_path(config.path),
        config,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if task is Task.seq2seq_lm and not found.is_encoder_decoder:
        raise UserError(
            f"{config.path} ({found.model_type}) is no encoder-decoder",
            where="model.path",
            fix="stage=sft trains decoders; or a T5, BART or the like",
        )
    if task is Task.causal_lm and found.is_encoder_decoder:
        raise UserError(
            f"{config.path} ({found.model_type}) is an encoder-decoder",
            where="model.path",
            fix="stage=seq2seq trains it; or a model that is a decoder alone",
        )


def weight_dtype(config: ModelConfig, computed_in: torch.dtype, *, frozen: bool) -> torch.dtype:
    """Frozen weights are stored as asked, else as computed in; weights that are trained are fp32."""
    if not frozen:
        return torch.float32
    return computed_in if config.dtype is DType.auto else getattr(torch, config.dtype.value)


def _from_pretrained(factory: Any, path: str, config: ModelConfig, **kwargs: Any) -> Any:
    with _explained(factory, config):
        return factory.from_pretrained(path, **kwargs)


OF_THE_KIND = "a model of the kind that the stage trains, or another stage: tune ls stage"
AS_CAUSAL = (
    "an encoder such as BERT or RoBERTa; or let it predict what comes next: stage.language_model=causal_lm of "
    "stage=verbalize, stage.objective=causal_lm of stage=pretrain"
)


@contextmanager
def _explained(factory: Any, config: ModelConfig) -> Iterator[None]:
    """transformers' complaints about what the user named, in our form."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot load {config.path!r}: {_first_line(error)}",
            where="model.path",
            fix="check the name, your network and (for a gated model) your Hub login; a local folder works offline",
        ) from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise UserError(
                f"transformers has no {factory.__name__} for {config.path!r}",
                where="model.path",
                fix=AS_CAUSAL if factory is AutoModelForMaskedLM else OF_THE_KIND,
            ) from error
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{config.path!r} comes with Python code of its own, which is not run unless you allow it",
            where="model.trust_remote_code",
            fix="read that code, then model.trust_remote_code=true",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
