"""axolotl's training files: keys and defaults of its schemas (0.19) and of transformers' TrainingArguments."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tunecli.config.data import SourceConfig
from tunecli.config.errors import UserError
from tunecli.foreign import trainer
from tunecli.foreign.draft import Draft
from tunecli.foreign.settings import Settings, show

ADAPTERS = ("lora", "qlora")
STARTS = ("gaussian", "pissa", "pissa_niter_16", "olora", "eva")
OTHER_TRAINING = (
    *("rl", "reward_model", "process_reward_model", "num_labels", "unfrozen_parameters", "relora", "lisa_n_layers"),
    *("qat", "gptq", "fp8", "use_eaft", "reinit_weights", "trainer_cls", "diffusion", "kd_trainer", "ebft"),
)
"""Keys that make it a training that we cannot do."""
CHAT_TEMPLATES = {"alpaca": "alpaca", "chatml": "chatml", "tokenizer_default": None}
PROMPTS: dict[str, dict[str, str]] = {
    "alpaca": {},
    "gpteacher": {"output": "response"},
    "alpaca_w_system.load_open_orca": {"instruction": "question", "output": "response", "system": "system_prompt"},
    "alpaca_chat.load_qa": {"instruction": "question", "output": "answer"},
}
"""Prompt strategies that write Stanford Alpaca's prompt or a kin of it -> columns of our format `alpaca`."""

UNNEEDED = (
    *("dataset_prepared_path", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "strict"),
    *("sample_packing_", "eval_sample_packing", "pad_to_sequence_len", "pad_to_multiple_of", "model_type"),
    *(
        "tokenizer_type",
        "tokenizer_use_fast",
        "tokenizer_legacy",
        "is_llama_derived_model",
        "is_mistral_derived_model",
    ),
    *("is_qwen_derived_model", "is_falcon_derived_model", "hf_use_auth_token", "flash_attention", "sdp_attention"),
    *("attn_implementation", "xformers_attention", "flex_attention", "eager_attention", "flash_attn_", "debug"),
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "chunked_cross_entropy"),
    *("liger_", "cut_cross_entropy", "lora_fan_in_fan_out", "gc_steps", "save_first_step"),
    *("shuffle_merged_datasets", "fsdp_final_state_dict_type", "batch_flattening", "use_kernels", "lora_on_cpu"),
    *("multipack_real_batches", "low_cpu_mem_usage", "world_size", "pretrain_multipack_", "skip_prepare_dataset"),
    *("quantize_moe_experts", "experts_implementation", "use_scattermoe", "use_sonicmoe", "fused_attn_kernel"),
    *("experimental_skip_move_to_device", "tiled_mlp", "accelerator_config", "flex_attn_compile_kwargs"),
    *("streaming_multipack_buffer_size", "activation_offloading", "base_model_config", "gc_collect_steps"),
)
PLAIN_LORA = "no counterpart: plain LoRA is trained"
NEW_TOKENS = "no counterpart: the tokenizer stays as it is"
WITHOUT = {
    "lora_model_dir": "peft.NAME.init_from=FOLDER trains an adapter on",
    "lora_modules_to_save": "peft=[lora,freeze] with peft.freeze.patterns=[...] trains other layers too",
    **dict.fromkeys(("peft_", "peft", "lora_target_parameters", "lora_exclude_modules"), PLAIN_LORA),
    "loraplus_lr_embedding": "no counterpart: embeddings are not trained",
    "bnb_config_kwargs": "model.quantization (nf4, fp4, int8) and model.double_quantization are what can be set",
    **dict.fromkeys(("special_tokens", "tokens", "added_tokens_overrides", "tokenizer_config"), NEW_TOKENS),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "shrink_embeddings"), NEW_TOKENS),
    "eot_tokens": "the end of each answer is always learnt",
    "dataset_exact_deduplication": "`tune check` reports rows that are there twice",
    "loss_watchdog_threshold": "no counterpart: training stops at a loss that is not finite",
    "loss_watchdog_patience": "no counterpart: training stops at a loss that is not finite",
    "evals_per_epoch": "set train.eval_every in steps; the loss is always measured at the end",
    "saves_per_epoch": "set train.save_every in steps; the last step is always saved",
    "eval_strategy": "set train.eval_every in steps; the loss is always measured at the end",
    "save_strategy": "set train.save_every in steps; the last step is always saved",
    **dict.fromkeys(("cosine_min_lr_ratio", "cosine_constant_lr_ratio"), "no counterpart: cosine falls to 0"),
    **dict.fromkeys(("embedding_lr", "embedding_lr_scale", "lr_groups"), "no counterpart: one learning rate"),
    **dict.fromkeys(
        ("sequence_parallel_degree", "context_parallel_size", "tensor_parallel_size", "dp_"), "no counterpart"
    ),
    **dict.fromkeys(("use_ray", "ray_", "resources_per_worker"), "no counterpart: one machine"),
    "overrides_of_model_config": "no counterpart: the model's own configuration is used",
    "rope_scaling": "no counterpart: the model's own positions are used",
    "noisy_embedding_alpha": "no counterpart: embeddings are trained without noise",
    "do_bench_eval": "`tune eval RUN_DIRECTORY harness=TASK` runs lm-evaluation-harness",
    "do_causal_lm_eval": "evaluation.rouge=100, evaluation.bleu=100 or evaluation.exact_match=100",
    "eval_causal_lm_metrics": "evaluation.rouge=100, evaluation.bleu=100 or evaluation.exact_match=100",
    "generate_samples": "'evaluation.prompts=[...]' shows the answers during training",
    "curriculum_sampling": "no counterpart: the order of the examples is shuffled by the seed",
    "min_sample_len": "no counterpart: short examples stay",
    "device_map": "model.device_map=auto spreads one model over several GPUs",
    "max_memory": "no counterpart",
    "plugins": "no counterpart; their kernels are not needed, and anything else that they do is left out",
    "auto_resume_from_checkpoints": "`tune resume RUN_DIRECTORY` goes on with a run",
    "model_config": "no counterpart: the model's own configuration is used",
    "model_quantization_config": "model.quantization is nf4, fp4 or int8",
    "max_packed_sequence_len": "sequences are always laid end to end; sequence_len limits each",
    "tokenizer_use_mistral_common": "no counterpart: the tokenizer of transformers is used",
}


def read(settings: Settings, draft: Draft, processes: int) -> None:
    _refuse_other_training(settings)
    _model(settings, draft)
    _adapter(settings, draft)
    _length(settings, draft)
    _data(settings, draft)
    _train(settings, draft, processes)
    _special_tokens(settings)
    trainer.leftovers(settings, draft, UNNEEDED, WITHOUT)


def _refuse_other_training(settings: Settings) -> None:
    for key in OTHER_TRAINING:
        if value := settings.take(key):
            what = f"{key} = {show(value)} is a training that this tunecli does not have"
            fix = "convert a file of supervised fine-tuning or pretraining"
            raise UserError(what, where=settings.where, fix=fix)
    if processor := settings.take("processor_type"):
        what = f"processor_type = {processor} is for images or sound, and tunecli trains on text"
        raise UserError(what, where=settings.where, fix="take it out, if the rows are text only")
    adapter = settings.values.get("adapter")
    if adapter and adapter not in ADAPTERS:
        what = f"adapter {adapter} is not something that this tunecli can train"
        raise UserError(what, where=settings.where, fix=f"choose {' or '.join(ADAPTERS)} there, or none")
    if not (settings.values.get("datasets") or settings.values.get("pretraining_dataset")):
        what = "names no datasets, so nothing is trained from it"
        raise UserError(what, where=settings.where, fix="convert a file that trains")


def _model(settings: Settings, draft: Draft) -> None:
    draft.set("model.path", settings.text("base_model"))
    draft.set("model.revision", settings.text("revision_of_model") or settings.text("model_revision"))
    draft.set("model.trust_remote_code", settings.flag("trust_remote_code"))
    draft.set("model.gradient_checkpointing", settings.flag("gradient_checkpointing"))
    four, eight = settings.flag("load_in_4bit"), settings.flag("load_in_8bit")
    if four or eight:
        draft.set("model.quantization", "nf4" if four else "int8")


def _adapter(settings: Settings, draft: Draft) -> None:
    draft.lora = settings.take("adapter") is not None
    r, alpha, dropout = (settings.number(key) for key in ("lora_r", "lora_alpha", "lora_dropout"))
    linear, targets = settings.flag("lora_target_linear"), settings.take("lora_target_modules", [])
    variants = {
        "use_dora": settings.flag("peft_use_dora") or None,
        "use_rslora": settings.flag("peft_use_rslora") or None,
        "loraplus_lr_ratio": settings.number("loraplus_lr_ratio"),
        "rank_pattern": settings.take("lora_rank_pattern"),
        "alpha_pattern": settings.take("lora_alpha_pattern"),
        "init_lora_weights": _start(settings, draft),
    }
    if not draft.lora:
        return
    if r is None or alpha is None:
        what = "an adapter needs lora_r and lora_alpha"
        raise UserError(what, where=settings.where, fix="axolotl has no default for them: set them there")
    draft.set("peft.lora.r", int(r))
    draft.set("peft.lora.lora_alpha", alpha)
    draft.set("peft.lora.lora_dropout", dropout)
    for name, value in variants.items():
        draft.set(f"peft.lora.{name}", value)
    named = isinstance(targets, list) and targets and not linear
    draft.set("peft.lora.target_modules", targets if named else ["all-linear"])
    if named:
        return
    if targets:
        draft.notes.append(
            f"lora_target_modules = {show(targets)}: every linear layer but the head is trained instead"
        )
    elif not linear:
        draft.notes.append("no lora_target_modules: every linear layer but the head is trained")


def _start(settings: Settings, draft: Draft) -> str | None:
    start = settings.take("peft_init_lora_weights")
    if start is None or start is True or start in STARTS:
        return None if start in (None, True) else str(start)
    draft.notes.append(f"peft_init_lora_weights = {show(start)}: no counterpart; A is random and B zero")
    return None


def _length(settings: Settings, draft: Draft) -> None:
    draft.set("data.max_length", settings.count("sequence_len", 512))
    overlong = settings.take("excess_length_strategy", "drop")
    if overlong in ("drop", "truncate"):
        draft.set("data.overlong", overlong)
    else:
        draft.notes.append(
            f"excess_length_strategy = {overlong}: overlong examples are cut, and counted by `tune preview`"
        )
    if settings.flag("sample_packing"):
        trainer.packing(draft, "sample_packing", "sequence_len")


def _data(settings: Settings, draft: Draft) -> None:
    streamed = settings.mappings("pretraining_dataset")
    draft.sources = [_text(entry, draft) for entry in streamed]
    draft.set("data.streaming", True if streamed or settings.flag("streaming") else None)
    entries = settings.mappings("datasets")
    draft.sources += [source for entry in entries for source in _sources(entry, draft)]
    if all(source.format == "text" for source in draft.sources):
        draft.set("data.overlong", "split")
    size, tests = settings.number("val_set_size", 0) or 0, settings.mappings("test_datasets")
    if 0 < size < 1:
        draft.set("data.validation", str(size))
    elif size >= 1:
        draft.notes.append(f"val_set_size = {size} rows: name a share of the rows, as in data.validation=0.05")
    if tests:
        draft.set_validation("test_datasets", [source for entry in tests for source in _sources(entry, draft)])
    _chat(settings, draft, entries)


def _sources(entry: dict[str, Any], draft: Draft) -> list[SourceConfig]:
    """One source for each file of one entry of `datasets`."""
    keys = Settings(entry, str(draft.file))
    path, files, kind = keys.text("path"), keys.take("data_files", []), keys.take("type")
    keys.take("ds_type")
    if path is None:
        raise UserError("an entry of datasets has no path", where=str(draft.file), fix="mend it there")
    names = files if isinstance(files, list) else [files]
    local = path in ("json", "csv", "parquet", "text", "arrow") or Path(path).is_dir()
    if names and not local:
        draft.notes.append(f"data_files = {show(files)} of {path}: no counterpart; the whole data set is read")
    paths = [str(Path(path) / name) if Path(path).is_dir() else name for name in names] if names and local else [path]
    split, subset, revision = keys.take("split", "train"), keys.text("name"), keys.text("revision")
    form, columns = _format(kind, keys, draft, path)
    _turns(keys, draft, path)
    for key, value in keys.values.items():
        if value and key not in ("trust_remote_code", "chat_template", "chat_template_jinja"):
            draft.notes.append(f"{key} = {show(value)} of {path}: no counterpart")
    return [
        SourceConfig(path=name, format=form, columns=dict(columns), split=split, subset=subset, revision=revision)
        for name in paths
    ]


def _format(kind: Any, keys: Settings, draft: Draft, path: str) -> tuple[str, dict[str, str]]:
    if isinstance(kind, dict):
        return _own_prompt(kind, draft, path)
    name = str(kind).partition(":")[0]
    if name in PROMPTS:
        return "alpaca", PROMPTS[name]
    if name == "completion":
        column = str(keys.take("field", "text"))
        return "text", {} if column == "text" else {"text": column}
    if name in ("chat_template", "sharegpt"):
        return _conversation(name, keys, draft, path)
    draft.notes.append(f"type = {show(kind)} of {path}: no counterpart; look with `tune preview` at what is read")
    return "auto", {}


def _conversation(name: str, keys: Settings, draft: Draft, path: str) -> tuple[str, dict[str, str]]:
    old = name == "sharegpt"
    column = str(keys.take("field_messages", "conversations" if old else "messages"))
    names = keys.take("message_property_mappings", {})
    role = names.get("role", keys.take("message_field_role", "from" if old else "role"))
    content = names.get("content", keys.take("message_field_content", "value" if old else "content"))
    keys.take("conversation")
    if (role, content) == ("from", "value"):
        return "sharegpt", {} if column == "conversations" else {"conversations": column}
    if (role, content) != ("role", "content"):
        draft.notes.append(f"messages of {path} have {role} and {content}: rename them to role and content")
    return "messages", {} if column == "messages" else {"messages": column}


def _own_prompt(kind: dict[str, Any], draft: Draft, path: str) -> tuple[str, dict[str, str]]:
    """A prompt with `{instruction}` in braces, as columns of `prompt_completion`."""
    pattern = str(kind.get("no_input_format") or kind.get("format") or "{instruction} ")
    column, answer = str(kind.get("field_instruction", "instruction")), str(kind.get("field_output", "output"))
    fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name}
    for key in ("system_prompt", "field_system", "field_input"):
        if kind.get(key):
            draft.notes.append(
                f"type.{key} = {show(kind[key])} of {path}: left out; write it into data.columns.prompt"
            )
    prompt = pattern.replace("{instruction}", f"{{{column}}}") if fields == {"instruction"} else column
    return "prompt_completion", {"prompt": prompt, "completion": answer}


def _text(entry: dict[str, Any], draft: Draft) -> SourceConfig:
    column = str(entry.get("text_column") or "text")
    columns = {} if column == "text" else {"text": column}
    if entry.get("skip"):
        draft.notes.append(f"skip = {entry['skip']} of {entry['path']}: no counterpart; all rows are read")
    return SourceConfig(
        path=entry["path"],
        format="text",
        columns=columns,
        split=entry.get("split") or "train",
        subset=entry.get("name"),
    )


def _turns(keys: Settings, draft: Draft, path: str) -> None:
    """Which turns and which of their tokens are learnt."""
    roles, ends = keys.take("roles_to_train", ["assistant"]), keys.take("train_on_eos", "turn")
    if set(roles) - {"assistant", "gpt"} or not roles:
        draft.notes.append(f"roles_to_train = {show(roles)} of {path}: only the assistant's turns are learnt")
    if ends != "turn":
        draft.notes.append(f"train_on_eos = {ends} of {path}: the end of each answer is always learnt")
    training = keys.take("message_field_training")
    if training not in (None, "train"):
        draft.notes.append(f"message_field_training = {training} of {path}: rename it to train")
    draft.set("data.system", "drop" if keys.flag("drop_system_message") else None)


def _chat(settings: Settings, draft: Draft, entries: list[dict[str, Any]]) -> None:
    jinja = settings.text("chat_template_jinja")
    name = settings.text("chat_template")
    named = [str(entry["chat_template"]) for entry in entries if entry.get("chat_template")]
    files = [str(entry["chat_template_jinja"]) for entry in entries if entry.get("chat_template_jinja")]
    prompts = {source.format == "alpaca" for source in draft.sources}
    if prompts == {True}:
        draft.set("data.chat_template", "alpaca")
        draft.notes.append("type alpaca: a row's input follows its instruction, with no heading of its own as there")
    elif len(prompts) == 2:
        draft.notes.append(
            "types with Alpaca's prompt and others: all rows are written by the one chat template here"
        )
    if prompts != {True} and {source.format for source in draft.sources} & {"messages", "sharegpt", "auto"}:
        _template(draft, jinja or next(iter(files), None), name or next(iter(named), "tokenizer_default"))
    if prompt := settings.text("default_system_message"):
        draft.set("data.system", "add")
        draft.set("data.system_prompt", prompt)
    draft.set("data.chat_template_kwargs", settings.take("chat_template_kwargs"))
    draft.set("stage.train_on_prompt", settings.flag("train_on_inputs"))


def _template(draft: Draft, jinja: str | None, name: str) -> None:
    if jinja is not None:
        if jinja.endswith(".jinja"):
            draft.set("data.chat_template", jinja)
        else:
            draft.notes.append(
                "chat_template_jinja: save the text as a file and name it: data.chat_template=FILE.jinja"
            )
    elif name in CHAT_TEMPLATES:
        draft.set("data.chat_template", CHAT_TEMPLATES[name])
    elif name.startswith("tokenizer_default_fallback_"):
        draft.notes.append(f"chat_template = {name}: the model's own is used; without one, data.chat_template=chatml")
    else:
        draft.notes.append(f"chat_template = {name}: the model's own chat template is used; look with `tune preview`")


def _train(settings: Settings, draft: Draft, processes: int) -> None:
    micro = settings.count("micro_batch_size", 1) or 1
    whole, accumulated = settings.count("batch_size"), settings.count("gradient_accumulation_steps")
    examples = whole if whole and not accumulated else micro * (accumulated or 1)
    draft.set("train.global_batch_size", examples * processes)
    draft.set("train.micro_batch_size", micro)
    rate = settings.number("learning_rate")
    if rate is None:
        raise UserError(
            "has no learning_rate", where=settings.where, fix="axolotl has no default for it: set it there"
        )
    draft.set("train.learning_rate", rate)
    trainer.length(settings, draft, "num_epochs", 1.0)
    trainer.schedule(settings, draft, "lr_scheduler", "cosine")
    trainer.warmup(settings, draft, 0.03)
    trainer.optimizer(settings, draft, "optimizer")
    bf16, pure_bf16 = settings.take("bf16", "auto"), settings.flag("bfloat16")
    fp16, pure_fp16 = settings.flag("fp16"), settings.flag("float16")
    trainer.precision(draft, bf16 or pure_bf16, fp16 or pure_fp16)
    settings.take("float32")
    draft.set("seed", settings.count("seed", 42))
    draft.set("output_dir", settings.text("output_dir") or "./model-out")
    trainer.every(settings, draft, "logging_steps", "train.log_every")
    trainer.every(settings, draft, "save_steps", "train.save_every")
    draft.set("train.keep_last", settings.count("save_total_limit", 4))
    trainer.every(settings, draft, "eval_steps", "train.eval_every")
    if "data.validation" not in draft.values:
        settings.take("evals_per_epoch")


def _special_tokens(settings: Settings) -> None:
    """A padding token is all that most files set, and batches are not padded here."""
    tokens = settings.values.get("special_tokens")
    if isinstance(tokens, dict) and set(tokens) <= {"pad_token"}:
        settings.take("special_tokens")
