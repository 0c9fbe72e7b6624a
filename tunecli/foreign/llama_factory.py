"""LLaMA-Factory's training files: keys and defaults of its hparams (0.9.5) and of transformers' TrainingArguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunecli.config.data import SourceConfig
from tunecli.config.errors import UserError
from tunecli.config.paths import display
from tunecli.foreign import trainer
from tunecli.foreign.draft import Draft
from tunecli.foreign.settings import Settings, show

STAGES = ("sft", "pt")
METHODS = ("lora", "full")
OTHER_TRAINING = (
    *("use_llama_pro", "use_dft_loss", "use_asft_loss", "use_eaft_loss", "mixture_of_depths", "train_from_scratch"),
    *("use_hyper_parallel", "fp8"),
)
"""Keys that make it a training that we cannot do."""
CHAT_TEMPLATES = {"alpaca": "alpaca", "chatml": "chatml"}
ALPACA_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
}
"""Their name of a column -> our format's, which is also the name that theirs has unless it is mapped."""
ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ROLES |= {"system_tag": "system", "observation_tag": "tool"}
SHAREGPT_ROLES = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
SHAREGPT_ROLES |= {"system_tag": "system", "observation_tag": "observation", "function_tag": "function_call"}

UNNEEDED = (
    *("do_train", "do_eval", "overwrite_cache", "overwrite_output_dir", "plot_loss", "preprocessing_", "media_dir"),
    *("use_fast_tokenizer", "use_reentrant_gc", "tokenized_path", "ignore_pad_token_for_loss", "cache_dir"),
    *("data_shared_file_system", "logging_dir", "log_level", "disable_tqdm", "eval_accumulation_steps"),
    *("flash_attn", "use_unsloth", "use_unsloth_gc", "enable_liger_kernel", "use_v1_kernels", "optim_target_modules"),
    *("print_param_status", "upcast_layernorm", "upcast_lmhead_output", "save_on_each_node"),
)
NO_OPTIMIZER = "no counterpart: adamw is used, which may want another learning rate"
NEW_TOKENS = "no counterpart: the tokenizer stays as it is"
WITHOUT = {
    "adapter_name_or_path": "peft.NAME.init_from=FOLDER trains an adapter on",
    "additional_target": "peft=[lora,freeze] with peft.freeze.patterns=[...] trains other layers too",
    "pissa_convert": "PiSSA is always saved as a plain LoRA on the untouched base",
    "loraplus_lr_embedding": "no counterpart: embeddings are not trained",
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), NO_OPTIMIZER),
    **dict.fromkeys(("galore_", "apollo_", "badam_"), "belongs to an optimizer that we do not have"),
    **dict.fromkeys(("add_tokens", "add_special_tokens", "new_special_tokens_config", "resize_vocab"), NEW_TOKENS),
    **dict.fromkeys(("use_ray", "ray_", "master_addr", "master_port"), "no counterpart: one machine"),
    "rope_scaling": "no counterpart: the model's own positions are used",
    "shift_attn": "no counterpart: full attention",
    "moe_aux_loss_coef": "no counterpart: no auxiliary loss",
    "pure_bf16": "trained parameters and optimizer states are kept in fp32 here, which takes more memory",
    "tool_format": "the chat template of the model decides how tool calls are written",
    "disable_shuffling": "no counterpart: the order of the examples is shuffled by the seed",
    "predict_with_generate": "evaluation.rouge=100, evaluation.bleu=100 or evaluation.exact_match=100",
    "compute_accuracy": "evaluation.exact_match=100 counts answers that are right",
    "do_predict": "`tune predict RUN_DIRECTORY FILE` writes what the model says of each row",
    "eval_on_each_dataset": "the validation loss of each source is measured where data.validation is a share",
    "preserve_thinking": "data.thinking says whether <think> blocks stay",
    **dict.fromkeys(
        ("image_", "video_", "audio_", "freeze_vision_tower", "freeze_multi_modal_projector"), "text only"
    ),
}


def read(settings: Settings, draft: Draft, processes: int) -> None:
    stage = _refuse_other_training(settings)
    _model(settings, draft)
    _adapter(settings, draft)
    _data(settings, draft, stage)
    _chat(settings, draft)
    _train(settings, draft, processes)
    trainer.leftovers(settings, draft, UNNEEDED, WITHOUT)


def _refuse_other_training(settings: Settings) -> str:
    stage, method = settings.take("stage", "sft"), settings.take("finetuning_type", "lora")
    if stage not in STAGES:
        fix = f"convert a file with stage {' or '.join(STAGES)}"
        raise UserError(f"stage {stage} is not something that this tunecli can train", where=settings.where, fix=fix)
    if method not in METHODS:
        what = f"finetuning_type {method} is not something that this tunecli can train"
        raise UserError(what, where=settings.where, fix=f"choose {' or '.join(METHODS)} there")
    for key in OTHER_TRAINING:
        if value := settings.take(key):
            what = f"{key} = {show(value)} is a training that tunecli does not have"
            raise UserError(what, where=settings.where, fix="take it out, if the plain training will do")
    if "dataset" not in settings.values:
        what = "names no dataset, so nothing is trained from it"
        raise UserError(what, where=settings.where, fix="convert a file that trains")
    settings.values["finetuning_type"] = method
    return str(stage)


def _model(settings: Settings, draft: Draft) -> None:
    draft.set("model.path", settings.text("model_name_or_path"))
    revision = settings.text("model_revision")
    draft.set("model.revision", None if revision == "main" else revision)
    draft.set("model.trust_remote_code", settings.flag("trust_remote_code"))
    draft.set("model.gradient_checkpointing", not settings.flag("disable_gradient_checkpointing"))
    settings.take("gradient_checkpointing")  # the key above decides there
    bits, kind = settings.count("quantization_bit"), str(settings.take("quantization_type", "nf4"))
    method, double = settings.take("quantization_method", "bnb"), settings.flag("double_quantization", True)
    if bits is None:
        return
    if method not in ("bnb", "bitsandbytes") or bits not in (4, 8):
        what = f"{bits} bits by quantization_method {method} cannot be loaded here"
        raise UserError(what, where=settings.where, fix="bitsandbytes has 4 and 8 bits: quantization_method: bnb")
    draft.set("model.quantization", kind if bits == 4 else "int8")
    draft.set("model.double_quantization", double if bits == 4 else None)


def _adapter(settings: Settings, draft: Draft) -> None:
    draft.lora = settings.take("finetuning_type") == "lora"
    r, alpha, dropout = settings.count("lora_rank", 8), settings.number("lora_alpha"), settings.number("lora_dropout")
    targets = settings.words("lora_target")
    dora, rslora = settings.flag("use_dora"), settings.flag("use_rslora")
    pissa, rounds = settings.flag("pissa_init"), settings.count("pissa_iter", 16)
    ratio = settings.number("loraplus_lr_ratio")
    if not draft.lora:
        return
    draft.set("peft.lora.r", r)
    draft.set("peft.lora.lora_alpha", alpha or 2 * (r or 8))
    draft.set("peft.lora.lora_dropout", dropout)
    draft.set("peft.lora.target_modules", ["all-linear"] if targets in ([], ["all"]) else targets)
    draft.set("peft.lora.use_dora", dora or None)
    draft.set("peft.lora.use_rslora", rslora or None)
    draft.set("peft.lora.loraplus_lr_ratio", ratio)
    if pissa:
        draft.set("peft.lora.init_lora_weights", "pissa" if rounds == -1 else "pissa_niter_16")


def _data(settings: Settings, draft: Draft, stage: str) -> None:
    folder = str(settings.take("dataset_dir", "data"))
    known, place = _dataset_info(draft.file, folder)
    names, samples = settings.words("dataset"), settings.count("max_samples")
    if known is None and folder != "ONLINE":
        draft.notes.append(
            f"{folder}/dataset_info.json is not here: path and format of {', '.join(names)} are guessed"
        )
    draft.sources = [_source(name, known, place, draft, stage) for name in names]
    draft.set("data.max_samples", samples)
    if any(source.format == "alpaca" for source in draft.sources):
        draft.notes.append(
            "alpaca rows: an empty line stands between instruction and input, and one line break there"
        )
    _mixing(settings, draft)
    _validation(settings, draft, known, place, stage)
    draft.set("data.max_length", settings.count("cutoff_len", 2048))
    if settings.flag("streaming"):
        draft.set("data.streaming", True)
        draft.set("data.shuffle_buffer", settings.count("buffer_size", 16384))
    packing = settings.flag("packing", stage == "pt") | settings.flag("neat_packing")
    if stage == "pt":
        draft.set("data.overlong", "split")
    if packing:
        trainer.packing(draft, "packing", "cutoff_len")


def _dataset_info(file: Path, folder: str) -> tuple[dict[str, Any] | None, Path]:
    """The nearest dataset_info.json: where LLaMA-Factory would look from here, else around the file."""
    around = [file.parent, *(parent / folder for parent in file.absolute().parents)]
    if folder.startswith("REMOTE:"):
        fix = f"download dataset_info.json of {folder.removeprefix('REMOTE:')} and name its folder there"
        raise UserError(f"dataset_dir {folder} lies on the Hub", where=str(file), fix=fix)
    for place in (Path(folder), *around):
        path = place / "dataset_info.json"
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8")), place
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"is not JSON: {error}", where=str(path), fix="mend it there") from None
    return None, Path(folder)


def _source(name: str, known: dict[str, Any] | None, place: Path, draft: Draft, stage: str) -> SourceConfig:
    if str(place) == "ONLINE":
        return SourceConfig(path=name, format="text" if stage == "pt" else "alpaca")
    if known is None:
        return SourceConfig(path=str(place / f"{name}.json"), format="text" if stage == "pt" else "auto")
    if name not in known:
        what = f"dataset {name} is not in {place / 'dataset_info.json'}"
        raise UserError(what, where=str(draft.file), fix=f"it has: {', '.join(list(known)[:20])}")
    entry = known[name]
    _refuse_other_data(name, entry, draft)
    path = entry.get("hf_hub_url") or _near(place / str(entry.get("file_name")))
    source = SourceConfig(path=path, split=entry.get("split", "train"), subset=entry.get("subset"))
    source.max_samples = entry.get("num_samples")
    source.format, source.columns = _columns(name, entry, draft) if stage == "sft" else _text_column(entry)
    return source


def _refuse_other_data(name: str, entry: dict[str, Any], draft: Draft) -> None:
    columns = entry.get("columns", {})
    media = [kind for kind in ("images", "videos", "audios") if columns.get(kind)]
    if media:
        what = f"dataset {name} has {', '.join(media)}, and tunecli trains on text"
        raise UserError(what, where=str(draft.file), fix="leave it out")
    if entry.get("ranking") or columns.get("kto_tag"):
        what = f"dataset {name} holds preferences, which stage sft does not read"
        raise UserError(what, where=str(draft.file), fix="leave it out")
    if not (entry.get("hf_hub_url") or entry.get("file_name")):
        where = ", ".join(f"{key}: {value}" for key, value in entry.items() if "url" in key or "name" in key)
        raise UserError(f"dataset {name} lies in a place that tunecli cannot read ({where})", where=str(draft.file))
    if entry.get("folder"):
        draft.notes.append(f"folder = {entry['folder']} of dataset {name}: no counterpart; all folders are read")


def _columns(name: str, entry: dict[str, Any], draft: Draft) -> tuple[str, dict[str, str]]:
    """Our format for a dataset of theirs, and the columns that are not named as the format expects."""
    columns = {key: str(column) for key, column in entry.get("columns", {}).items() if column}
    if entry.get("formatting", "alpaca") == "alpaca":
        named = {ours: columns[theirs] for theirs, ours in ALPACA_COLUMNS.items() if theirs in columns}
        return "alpaca", {ours: column for ours, column in named.items() if ours != column}
    openai = entry["formatting"] == "openai"
    tags = entry.get("tags", ROLES if openai else {})
    named = {key: columns[key] for key in ("system", "tools") if columns.get(key, key) != key}
    if "messages" in columns or openai:
        conversation = columns.get("messages", "messages")
    else:
        conversation = "conversations"
    if tags and _agrees(tags, ROLES):
        if "system" in columns:
            draft.notes.append(f"columns.system of dataset {name}: make it the first message, with the role system")
            named.pop("system", None)
        return "messages", named if conversation == "messages" else {"messages": conversation, **named}
    if not _agrees(tags, SHAREGPT_ROLES):
        draft.notes.append(f"tags = {show(tags)} of dataset {name}: our sharegpt format reads {show(SHAREGPT_ROLES)}")
    return "sharegpt", named if conversation == "conversations" else {"conversations": conversation, **named}


def _agrees(tags: dict[str, str], roles: dict[str, str]) -> bool:
    return all(roles.get(tag) == value for tag, value in tags.items())


def _text_column(entry: dict[str, Any]) -> tuple[str, dict[str, str]]:
    column = entry.get("columns", {}).get("prompt", "instruction")
    return "text", {} if column == "text" else {"text": column}


def _near(path: Path) -> str:
    return display(path.absolute().resolve()) if path.exists() else str(path)


def _mixing(settings: Settings, draft: Draft) -> None:
    strategy, shares = str(settings.take("mix_strategy", "concat")), settings.words("interleave_probs")
    if len(draft.sources) < 2 or strategy == "concat":
        return
    draft.set("data.mixing", "weights" if shares else "equal")
    for source, share in zip(draft.sources, shares, strict=False):
        source.weight = float(share)
    draft.notes.append(f"mix_strategy = {strategy}: an epoch may be of another length here; train.max_steps fixes it")


def _validation(settings: Settings, draft: Draft, known: dict[str, Any] | None, place: Path, stage: str) -> None:
    size, names = settings.number("val_size", 0) or 0, settings.words("eval_dataset")
    if 0 < size < 1:
        draft.set("data.validation", str(size))
    elif size >= 1:
        draft.notes.append(f"val_size = {size} rows: name a share of the rows, as in data.validation=0.05")
    if names:
        sources = [_source(name, known, place, draft, stage) for name in names]
        draft.set_validation("eval_dataset", sources)


def _chat(settings: Settings, draft: Draft) -> None:
    template = settings.text("template")
    if template in CHAT_TEMPLATES:
        draft.set("data.chat_template", CHAT_TEMPLATES[template])
    elif template is not None:
        draft.notes.append(f"template = {template}: the model's own chat template is used; look with `tune preview`")
    if "enable_thinking" in settings.values:
        draft.set("data.chat_template_kwargs", {"enable_thinking": settings.flag("enable_thinking")})
    if prompt := settings.text("default_system"):
        draft.set("data.system", "add")
        draft.set("data.system_prompt", prompt)
    draft.set("stage.train_on_prompt", settings.flag("train_on_prompt"))
    draft.set("stage.turns", "last" if settings.flag("mask_history") else None)


def _train(settings: Settings, draft: Draft, processes: int) -> None:
    batch = settings.count("per_device_train_batch_size", 8) or 8
    draft.set("train.global_batch_size", batch * (settings.count("gradient_accumulation_steps", 1) or 1) * processes)
    draft.set("train.micro_batch_size", batch)
    draft.set("train.learning_rate", settings.number("learning_rate", 5e-5))
    trainer.length(settings, draft, "num_train_epochs", 3.0)
    trainer.schedule(settings, draft, "lr_scheduler_type", "linear")
    trainer.warmup(settings, draft)
    trainer.optimizer(settings, draft, "optim")
    trainer.precision(draft, settings.flag("bf16") or settings.values.get("pure_bf16"), settings.flag("fp16"))
    draft.set("seed", settings.count("seed", 42))
    draft.set("output_dir", settings.text("output_dir"))
    trainer.every(settings, draft, "logging_steps", "train.log_every")
    _periods(settings, draft)


def _periods(settings: Settings, draft: Draft) -> None:
    saving, testing = settings.take("save_strategy", "steps"), settings.take("eval_strategy", "no")
    if saving == "steps":
        trainer.every(settings, draft, "save_steps", "train.save_every", 500)
    elif saving == "epoch":
        draft.notes.append("save_strategy = epoch: set train.save_every in steps; the last step is always saved")
    draft.set("train.keep_last", settings.count("save_total_limit"))
    if testing == "steps":
        trainer.every(settings, draft, "eval_steps", "train.eval_every", draft.values.get("train.log_every", 500))
    elif testing == "epoch":
        draft.notes.append("eval_strategy = epoch: set train.eval_every in steps; it is also measured at the end")
    for key in ("eval_steps", "save_steps"):
        settings.take(key)  # without a meaning under another strategy
