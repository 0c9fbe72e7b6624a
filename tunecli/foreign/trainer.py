"""What LLaMA-Factory and axolotl both take from transformers' Trainer, and how each part of it reads here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from tunecli.foreign.draft import Draft
from tunecli.foreign.settings import Settings, show

OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
NUMBERS = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
"""Same name, same default, same meaning."""

UNNEEDED = (
    *("dataloader_", "ddp_", "eval_batch_size", "gradient_checkpointing_kwargs", "include_", "local_rank"),
    *("logging_first_step", "low_cpu_mem_usage", "per_device_eval_batch_size", "remove_unused_columns"),
    *("save_only_model", "save_safetensors", "tf32", "torch_empty_cache_steps"),
)
TRACKERS = "train.trackers=[tensorboard], wandb, mlflow or trackio; metrics.jsonl of the run has all metrics"
WITHOUT = {
    "deepspeed": "no counterpart yet: one process per GPU, each with the whole model (launch=ddp)",
    "fsdp": "no counterpart yet: one process per GPU, each with the whole model (launch=ddp)",
    "resume_from_checkpoint": "`tune resume RUN_DIRECTORY` goes on with a run",
    "neftune_noise_alpha": "no counterpart: embeddings are trained without noise",
    "label_smoothing_factor": "no counterpart: plain cross-entropy",
    "load_best_model_at_end": "train.keep_best=true",
    "metric_for_best_model": "train.best_metric",
    "early_stopping": "train.early_stopping=3 ends after three evaluations without a better one",
    "torch_compile": "no counterpart",
    "group_by_length": "not needed for speed, as batches are not padded; the order of the examples differs",
    "optim_args": "no counterpart",
    "lr_scheduler_kwargs": "no counterpart",
    "hub_": "`tune push RUN_DIRECTORY OWNER/NAME` uploads the result",
    "push_to_hub": "`tune push RUN_DIRECTORY OWNER/NAME` uploads the result",
    **dict.fromkeys(("report_to", "run_name", "use_wandb", "wandb_", "use_mlflow", "mlflow_"), TRACKERS),
    **dict.fromkeys(("use_tensorboard", "use_comet", "comet_", "use_trackio", "trackio_"), TRACKERS),
    **dict.fromkeys(("use_swanlab", "swanlab_", "use_otel_metrics", "otel_metrics_"), TRACKERS),
}
"""Key, or how a family of keys begins -> what to do instead."""


def optimizer(settings: Settings, draft: Draft, key: str) -> None:
    name = str(settings.take(key, "adamw_torch_fused"))
    if name not in OPTIMIZERS:
        draft.notes.append(f"{key} = {name}: no counterpart; adamw is used, which may want another learning rate")
    draft.set("train.optimizer", OPTIMIZERS.get(name, "adamw"))
    for number in NUMBERS:
        draft.set(f"train.{number}", settings.number(number))


def length(settings: Settings, draft: Draft, epochs_key: str, epochs: float) -> None:
    """Epochs or steps; both tools let positive steps win."""
    steps, passes = settings.count("max_steps", -1) or -1, settings.number(epochs_key, epochs)
    if steps > 0:
        draft.set("train.max_steps", steps)
    else:
        draft.set("train.num_epochs", float(passes or epochs))


def schedule(settings: Settings, draft: Draft, key: str, default: str) -> None:
    """The learning rate's course less its warm-up."""
    name = str(settings.take(key, default))
    if name not in SCHEDULERS:
        draft.notes.append(f"{key} = {name}: no counterpart; cosine falls to 0 instead")
    draft.set("train.lr_scheduler", SCHEDULERS.get(name, "cosine"))
    if name == "constant":
        for warmup in ("warmup_steps", "warmup_ratio"):
            if settings.number(warmup):
                draft.notes.append(f"{warmup}: left out, as the schedule named constant ignores it there")


def warmup(settings: Settings, draft: Draft, ratio: float = 0.0) -> None:
    """`ratio`: what is meant when the file says nothing."""
    steps, given = settings.number("warmup_steps"), settings.number("warmup_ratio")
    if steps is None:
        steps = ratio if given is None else 0
    if share_or_steps := steps or given or 0:
        draft.set("train.warmup_steps", math.ceil(share_or_steps) if share_or_steps >= 1 else share_or_steps)


def every(settings: Settings, draft: Draft, key: str, ours: str, default: float | None = None) -> None:
    """A period in steps; one below 1 is a share of all steps."""
    if ours == "train.eval_every" and "data.validation" not in draft.values:
        settings.take(key)
        return
    value = settings.number(key, default)
    total = draft.values.get("train.max_steps")
    if not value:
        return
    if value >= 1:
        draft.set(ours, int(value))
    elif total is not None:
        draft.set(ours, max(1, math.ceil(value * total)))
    else:
        draft.notes.append(f"{key} = {value} of all steps: set {ours} in steps")


def precision(draft: Draft, bf16: object, fp16: object) -> None:
    draft.set("train.precision", "auto" if bf16 == "auto" else "bf16" if bf16 else "fp16" if fp16 else "fp32")


def packing(draft: Draft, key: str, length_key: str) -> None:
    draft.notes.append(
        f"{key}: a step there has so many full rows of {length_key} tokens, each of several examples; here "
        "train.global_batch_size counts examples, which are laid end to end without padding anyway: raise it"
    )


def leftovers(settings: Settings, draft: Draft, unneeded: Iterable[str], without: dict[str, str]) -> None:
    """Say of every key that nobody took what became of it. A key that is off has become nothing."""
    advice = WITHOUT | without
    for key, value in settings.values.items():
        if not value or value == ["none"] or value == "none":
            continue
        if reason := _longest(key, advice):
            draft.notes.append(f"{key} = {show(value)}: {advice[reason]}")
        elif _longest(key, (*UNNEEDED, *unneeded)):
            draft.unneeded.append(key)
        else:
            near = difflib.get_close_matches(key, [*settings.asked, *advice], n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            draft.notes.append(f"{key} = {show(value)}: unknown here, and to {draft.tool} too?{hint}")


def _longest(key: str, families: Iterable[str]) -> str:
    """The family that the key belongs to: its own name, or a beginning that ends in an underscore or is a word."""
    found = [name for name in families if key == name or key.startswith(name if name.endswith("_") else f"{name}_")]
    return max(found, key=len, default="")
