"""What `find_source` found as a model: the base in the form in which it was trained on, with its adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunecli.config.errors import UserError
from tunecli.config.model import ModelConfig
from tunecli.config.paths import display
from tunecli.config.stage import ProblemType, Task
from tunecli.engine.precision import DTYPES, resolve_precision
from tunecli.models.load import Head, load_model, load_tokenizer, resolve_path, task_of, weight_dtype
from tunecli.peft_methods.saving import load_adapters
from tunecli.peft_methods.source import Source, find_source


def load(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `path` names, all its adapters on, in eval mode, and its tokenizer.

    Raises:
        UserError: a run has no result yet, or the model cannot be found.
    """
    source = find_source(str(path))
    require_one(source)
    model = load_base(source)
    load_adapters(model, source.adapters)
    return model.eval(), tokenizer_of(source)


def require_one(source: Source) -> None:
    """Raises UserError where the adapters are alternatives."""
    if source.one_for_each_row:
        folder = source.adapters[0]
        names = ", ".join(each.name for each in source.adapters)
        raise UserError(
            f"its adapters are for different rows ({names}), and one of them is to be named",
            where=source.path,
            fix=f"{display(folder)}, for one",
        )


def load_base(source: Source) -> PreTrainedModel:
    """Without the adapters, in eval mode."""
    config = stored_config(source)
    task = base_task(source)
    stored_with_adapters = config is not None and _config_of_adapters(source) is not None
    head = head_of(config) if stored_with_adapters and config is not None and task.has_labels else None
    model = load_model(source.base, dtype=dtype_of(source), device=device(), task=task, head=head).eval()
    if head is not None and config is not None and config.pad_token_id is not None:
        model.config.pad_token_id = config.pad_token_id  # that the head was trained beside; the base's may end a text
    return model


def base_task(source: Source) -> Task:
    """What the model is for."""
    if source.run is not None and source.adapters and _config_of_adapters(source) is None:
        return source.run.stage.task
    config = stored_config(source)
    return Task.causal_lm if config is None else task_of(config)


def stored_config(source: Source) -> PretrainedConfig | None:
    """Of the model with its head, which may be stored with the adapters; None for a model that cannot be had."""
    saved = _config_of_adapters(source)
    return AutoConfig.from_pretrained(saved) if saved is not None else _stored_config(source.base)


def head_of(config: PretrainedConfig) -> Head:
    """The head that a stored model has for labels. One label without a word about the problem is a number, as
    transformers have it."""
    labels = [config.id2label[number] for number in range(len(config.id2label))]
    usual = "single_label" if len(labels) > 1 else "regression"
    problem = (config.problem_type or usual).removesuffix("_classification")
    return Head(labels=labels, problem_type=ProblemType(problem), seed=0)


def _config_of_adapters(source: Source) -> Path | None:
    """The folder of the adapters, where a model's configuration is stored with them."""
    saved = source.tokenizer if source.adapters else None
    return saved if saved is not None and (saved / "config.json").is_file() else None


def tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """That of the result, with the template as trained; of an adapter that came without one, its base's."""
    if source.tokenizer is not None:
        return AutoTokenizer.from_pretrained(source.tokenizer)
    return load_tokenizer(source.base)


def dtype_of(source: Source) -> torch.dtype:
    """Of the weights, quantised ones aside: as in training; of what we did not train, as it is stored."""
    if source.run is None:
        return _stored_dtype(source.base)
    frozen = bool(source.run.peft)
    precision = resolve_precision(source.run.train.precision, cpu=device().type == "cpu", frozen_base=frozen)
    return weight_dtype(source.run.model, DTYPES[precision], frozen=frozen)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _stored_dtype(model: ModelConfig) -> torch.dtype:
    """As the model's own configuration says; without a word there, float32."""
    config = _stored_config(model)
    return config.dtype if config is not None and config.dtype in DTYPES.values() else torch.float32


def _stored_config(model: ModelConfig) -> PretrainedConfig | None:
    """None for a model that cannot be had: `load_model` finds the words for that."""
    try:
        return AutoConfig.from_pretrained(
            resolve_path(model.path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError):
        return None
