"""Training files of LLaMA-Factory and axolotl become recipes that mean the same; what cannot is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunecli.config.checks import find_problems
from tunecli.config.compose import SOURCE_KEYS, Composed, compose_run
from tunecli.config.errors import UserError
from tunecli.config.run import RunConfig
from tunecli.foreign import axolotl, convert, llama_factory, trainer
from tunecli.foreign.draft import DATA_KEYS, MODEL_KEYS, Draft

FIXTURES = Path(__file__).parent / "fixtures" / "foreign"
FILES = [path for folder in ("llama_factory", "axolotl") for path in sorted((FIXTURES / folder).glob("*.y*ml"))]
TRAININGS = [path for path in FILES if "dpo" not in path.stem]

FACTORY = {"model_name_or_path": "org/model", "dataset": "org/set", "dataset_dir": "ONLINE", "bf16": True}
AXOLOTL = {
    "base_model": "org/model",
    "datasets": [{"path": "org/set", "type": "chat_template"}],
    "learning_rate": 1e-4,
}


@pytest.fixture
def recipe(tmp_path: Path):
    def make(values: dict[str, Any], processes: int | None = 1) -> tuple[Draft, RunConfig]:
        file = tmp_path / "theirs.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        draft = convert(file, processes)
        return draft, composed(draft, tmp_path).config

    return make


def composed(draft: Draft, folder: Path) -> Composed:
    """What the written recipe composes to; it is complete and has no problems."""
    path = folder / "ours.yaml"
    path.write_text(draft.text())
    result = compose_run(str(path), [])
    assert result.notes == [] and find_problems(result.config) == []
    return result


def noted(draft: Draft, *words: str) -> bool:
    return any(all(word in note for word in words) for note in draft.notes)


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_every_key_of_a_real_file_is_converted_or_listed(path: Path, tmp_path: Path):
    draft = convert(path, None)
    composed(draft, tmp_path)
    text = draft.text()
    assert not noted(draft, "unknown here") and noted(draft, "--processes")
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert all(note in head for note in draft.notes) and all(key in head for key in draft.unneeded)
    assert max(map(len, text.splitlines())) <= 118


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_the_body_sets_no_identity_under_an_option_that_has_one(path: Path):
    values = yaml.safe_load(convert(path, 1).text())
    chosen = {key: option for entry in values["defaults"] if isinstance(entry, dict) for key, option in entry.items()}
    for group in ("model", "data"):
        assert chosen[group] in ("path", "file", "mix") or not set(values.get(group, {})) & SOURCE_KEYS[group]


def test_what_identifies_an_option_is_what_swapping_takes_away():
    assert set(MODEL_KEYS) == SOURCE_KEYS["model"]
    assert {*DATA_KEYS, "mix"} == SOURCE_KEYS["data"]


@pytest.mark.parametrize("path", [path for path in FILES if "dpo" in path.stem], ids=lambda path: path.stem)
def test_preference_training_is_refused(path: Path):
    with pytest.raises(UserError, match="dpo"):
        convert(path, 1)


def test_llama_factory_defaults_are_written_out(recipe):
    _, config = recipe({key: value for key, value in FACTORY.items() if key != "bf16"})
    train, lora = config.train, config.peft["lora"]
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 16, ["all-linear"])
    assert (train.learning_rate, train.num_epochs, train.lr_scheduler.value) == (5e-5, 3.0, "linear")
    assert (train.global_batch_size, train.micro_batch_size, train.precision.value) == (8, 8, "fp32")
    assert (config.data.max_length, config.seed, train.save_every) == (2048, 42, 500)
    assert config.model.gradient_checkpointing


def test_axolotl_defaults_are_written_out(recipe):
    draft, config = recipe(AXOLOTL)
    train = config.train
    assert config.peft == {} and not config.model.gradient_checkpointing
    assert (train.num_epochs, train.lr_scheduler.value, train.global_batch_size) == (1.0, "cosine", 1)
    assert (config.data.max_length, config.data.overlong.value, config.seed) == (512, "drop", 42)
    assert train.warmup_steps == 0.03


def test_the_real_sft_file_means_what_it_says(tmp_path: Path):
    config = composed(convert(FIXTURES / "llama_factory" / "qwen3_lora_sft_bnb_npu.yaml", 4), tmp_path).config
    assert config.model.path == "Qwen/Qwen3-4B-Instruct-2507" and config.model.trust_remote_code
    assert config.model.quantization.value == "nf4" and not config.model.double_quantization
    assert [Path(source.path).name for source in config.data.mix] == ["identity.json", "alpaca_en_demo.json"]
    assert config.data.max_samples == 1000 and {source.format for source in config.data.mix} == {"alpaca"}
    assert (config.train.global_batch_size, config.train.micro_batch_size) == (1 * 8 * 4, 1)


def test_the_real_qlora_file_of_axolotl_means_what_it_says(tmp_path: Path):
    config = composed(convert(FIXTURES / "axolotl" / "qlora.yml", 2), tmp_path).config
    assert config.model.quantization.value == "nf4" and config.model.gradient_checkpointing
    assert (config.peft["lora"].r, config.peft["lora"].lora_alpha, config.peft["lora"].lora_dropout) == (32, 16, 0.05)
    assert (config.data.format, config.data.chat_template, config.data.max_length) == ("alpaca", "alpaca", 4096)
    assert config.data.validation is None
    assert (config.train.global_batch_size, config.train.optimizer.value) == (16, "paged_adamw_32bit")


def test_sharegpt_columns_of_axolotl(tmp_path: Path):
    data = composed(convert(FIXTURES / "axolotl" / "falcon-h1-500m-qlora.yaml", 1), tmp_path).config.data
    assert (data.path, data.format, data.columns) == ("cgato/SlimOrcaDedupCleaned", "sharegpt", {})


def test_a_ready_option_is_used_where_it_is_the_same_thing(recipe):
    values = FACTORY | {"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset": "tatsu-lab/alpaca", "val_size": 0.02}
    draft, config = recipe(values)
    assert "- model: qwen3_0_6b" in draft.text() and "- data: alpaca" in draft.text()
    assert config.data.max_length == 2048
    draft, config = recipe(values | {"model_revision": "v1", "val_size": 0.1})
    assert "- model: path" in draft.text() and "- data: file" in draft.text()
    assert (config.model.revision, config.data.validation) == ("v1", "0.1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "openorca",
            ("alpaca", {"instruction": "question", "output": "response", "system": "system_prompt"}, "train"),
        ),
        ("ultrachat_200k", ("messages", {}, "train_sft")),
        ("slimorca", ("sharegpt", {}, "train")),
        ("glaive_toolcall_en", ("sharegpt", {}, "train")),
        ("alpaca_en", ("alpaca", {}, "train")),
    ],
)
def test_datasets_of_dataset_info(recipe, name: str, expected: tuple[Any, ...]):
    folder = str(FIXTURES / "llama_factory" / "data")
    _, config = recipe(FACTORY | {"dataset_dir": folder, "dataset": name})
    assert (config.data.format, config.data.columns, config.data.split) == expected


def test_an_unusable_dataset_is_refused(recipe):
    folder = str(FIXTURES / "llama_factory" / "data")
    for name, word in (("mllm_demo", "images"), ("dpo_en_demo", "preferences"), ("nothing", "alpaca_en_demo")):
        with pytest.raises(UserError, match=word):
            recipe(FACTORY | {"dataset_dir": folder, "dataset": name})


def test_without_dataset_info_the_path_is_a_guess_that_check_sees(tmp_path: Path):
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(FACTORY | {"dataset": "alpaca_en_demo", "dataset_dir": "data"}))
    draft = convert(file, 1)
    (tmp_path / "ours.yaml").write_text(draft.text())
    (problem,) = find_problems(compose_run(str(tmp_path / "ours.yaml"), []).config)
    assert noted(draft, "dataset_info.json is not here", "alpaca_en_demo") and "does not exist" in problem.what


def test_pretraining_learns_all_of_the_text(recipe):
    folder = str(FIXTURES / "llama_factory" / "data")
    draft, config = recipe(FACTORY | {"stage": "pt", "dataset_dir": folder, "dataset": "c4_demo"})
    assert (config.data.format, config.data.overlong.value) == ("text", "split") and noted(draft, "packing")
    streamed = {"base_model": "m/m", "pretraining_dataset": "allenai/c4", "max_steps": 10, "learning_rate": 1e-4}
    _, config = recipe(streamed)
    assert (config.data.streaming, config.data.format, config.train.max_steps) == (True, "text", 10)


def test_a_stream_keeps_what_it_can(recipe):
    streamed = AXOLOTL | {"streaming": True, "max_steps": 10, "val_set_size": 0.1, "eval_steps": 5}
    draft, config = recipe(streamed | {"datasets": [{"path": p, "type": "completion"} for p in ("a/b", "c/d")]})
    assert config.data.validation is None and config.train.eval_every is None and noted(draft, "held out")
    assert config.data.mixing.value == "equal" and noted(draft, "take turns")


def test_mixing_with_probabilities(recipe):
    values = FACTORY | {"dataset": "a/b, c/d", "mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"}
    _, config = recipe(values)
    assert config.data.mixing.value == "weights" and [source.weight for source in config.data.mix] == [0.7, 0.3]
    _, config = recipe({key: value for key, value in values.items() if key != "interleave_probs"})
    assert config.data.mixing.value == "equal"


def test_masks_and_templates(recipe):
    _, config = recipe(FACTORY | {"mask_history": True, "template": "chatml", "enable_thinking": False})
    assert config.stage.turns.value == "last" and config.data.chat_template == "chatml"
    assert config.data.chat_template_kwargs == {"enable_thinking": False}
    draft, config = recipe(FACTORY | {"train_on_prompt": True, "template": "qwen", "default_system": "Be brief."})
    assert config.stage.train_on_prompt and noted(draft, "template = qwen", "own chat template")
    assert (config.data.system.value, config.data.system_prompt) == ("add", "Be brief.")


def test_a_prompt_of_the_user_s_own(recipe):
    kind = {"field_instruction": "q", "field_output": "a", "format": "[INST] {instruction} [/INST]"}
    _, config = recipe(AXOLOTL | {"datasets": [{"path": "x.org/y", "type": kind}]})
    assert config.data.format == "prompt_completion"
    assert config.data.columns == {"prompt": "[INST] {q} [/INST]", "completion": "a"}


def test_several_files_of_one_entry_are_several_sources(recipe, tmp_path: Path):
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for file in files:
        Path(file).write_text("{}\n")
    entry = {"path": "json", "ds_type": "json", "data_files": files, "type": "chat_template"}
    _, config = recipe(AXOLOTL | {"datasets": [entry]})
    assert [source.path for source in config.data.mix] == files


def test_validation_is_converted_or_explained(recipe):
    test_set = {"path": "org/set", "type": "chat_template", "split": "test"}
    assert recipe(AXOLOTL | {"test_datasets": [test_set]})[1].data.validation == "split:test"
    assert recipe(FACTORY | {"eval_dataset": "org/other"})[1].data.validation == "org/other"
    assert noted(recipe(FACTORY | {"eval_dataset": "org/set"})[0], "training data too")
    assert noted(recipe(FACTORY | {"val_size": 500})[0], "val_size = 500", "share")
    _, config = recipe(FACTORY | {"dataset": "a/b,c/d", "eval_dataset": "e/f"})
    assert (config.data.validation, config.data.format) == ("e/f", "alpaca")
    _, config = recipe(FACTORY | {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 50})
    assert (config.data.validation, config.train.eval_every) == ("0.1", 50)
    assert recipe(FACTORY | {"eval_strategy": "steps", "eval_steps": 50})[1].train.eval_every is None


def test_warm_up_in_steps_and_as_a_share(recipe):
    assert recipe(FACTORY | {"warmup_ratio": 0.1})[1].train.warmup_steps == 0.1
    assert recipe(FACTORY | {"warmup_steps": 20, "warmup_ratio": 0.1})[1].train.warmup_steps == 20
    assert recipe(FACTORY)[1].train.warmup_steps == 0
    draft, config = recipe(FACTORY | {"max_steps": 250, "warmup_ratio": 0.1, "lr_scheduler_type": "constant"})
    assert config.train.warmup_steps == 0 and noted(draft, "warmup_ratio", "ignores")


def test_what_has_no_counterpart_is_listed_with_its_value(recipe):
    draft, config = recipe(
        FACTORY | {"deepspeed": "ds3.json", "optim": "lion_8bit", "learing_rate": 1, "plot_loss": True}
    )
    assert noted(draft, "deepspeed = ds3.json") and noted(draft, "optim = lion_8bit", "adamw")
    assert noted(draft, "learing_rate = 1", "unknown here", "did you mean learning_rate?")
    assert draft.unneeded == ["plot_loss"] and config.train.optimizer.value == "adamw"


def test_variants_of_lora(recipe):
    theirs = {"use_dora": True, "use_rslora": True, "loraplus_lr_ratio": 16, "pissa_init": True, "pissa_iter": 16}
    lora = recipe(FACTORY | theirs)[1].peft["lora"]
    assert lora.use_dora and lora.use_rslora and lora.loraplus_lr_ratio == 16
    assert lora.init_lora_weights.value == "pissa_niter_16"
    assert recipe(FACTORY | {"pissa_init": True, "pissa_iter": -1})[1].peft["lora"].init_lora_weights.value == "pissa"
    theirs = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "peft_use_dora": True}
    theirs |= {"peft_use_rslora": True, "loraplus_lr_ratio": 4, "peft_init_lora_weights": "olora"}
    lora = recipe(AXOLOTL | theirs | {"lora_rank_pattern": {"q_proj": 4}})[1].peft["lora"]
    assert lora.use_dora and lora.use_rslora and lora.loraplus_lr_ratio == 4 and lora.rank_pattern == {"q_proj": 4}
    assert lora.init_lora_weights.value == "olora"
    draft, config = recipe(AXOLOTL | theirs | {"peft_init_lora_weights": "loftq"})
    assert noted(draft, "peft_init_lora_weights = loftq")
    assert config.peft["lora"].init_lora_weights.value == "default"


def test_keys_that_are_off_are_not_listed(recipe):
    draft, _ = recipe(FACTORY | {"deepspeed": None, "use_dora": False, "report_to": "none", "push_to_hub": False})
    assert draft.notes == [
        "alpaca rows: an empty line stands between instruction and input, and one line break there"
    ]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (FACTORY | {"finetuning_type": "freeze"}, "freeze"),
        (FACTORY | {"stage": "ppo"}, "ppo"),
        (FACTORY | {"quantization_bit": 2}, "2 bits"),
        (FACTORY | {"use_dft_loss": True}, "use_dft_loss"),
        ({"model_name_or_path": "m", "template": "qwen"}, "no dataset"),
        (AXOLOTL | {"rl": "grpo"}, "grpo"),
        (AXOLOTL | {"adapter": "llama-adapter"}, "llama-adapter"),
        (AXOLOTL | {"unfrozen_parameters": ["lm_head"]}, "unfrozen_parameters"),
        (AXOLOTL | {"learning_rate": "fast"}, "no number"),
        (AXOLOTL | {"adapter": "lora"}, "lora_r"),
        ({"defaults": ["run"]}, "without --from"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_training_is_refused(recipe, values: dict[str, Any], word: str):
    with pytest.raises(UserError, match=word):
        recipe(values)


@pytest.mark.parametrize("module", [llama_factory, axolotl])
def test_a_key_is_listed_in_one_way(module: Any):
    assert not {*module.UNNEEDED, *trainer.UNNEEDED} & {*module.WITHOUT, *trainer.WITHOUT}
    assert not set(module.OTHER_TRAINING) & {*module.UNNEEDED, *module.WITHOUT}
