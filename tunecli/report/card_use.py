"""The code in a model card that loads the result and asks it something; each piece of it runs as it stands.

`tunecli.load` loads everything that we make. Plain peft or transformers are shown beside it where they give the same:
for whole models, for LoRAs, and for one adapter of another method that peft has too. What the result was trained to
see (its chat template, system message and virtual tokens) is made by `tunecli.prompt_ids`; the libraries' own code is
shown without it only where there are no virtual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from transformers import PretrainedConfig

from tunecli.config.cloze import parse_cloze
from tunecli.config.data import SystemPolicy, training_sources
from tunecli.config.data_files import is_local
from tunecli.config.peft import HEAD, PTuningConfig
from tunecli.config.run import RunConfig
from tunecli.config.stage import (
    Objective,
    PretrainConfig,
    ProblemType,
    RewardConfig,
    StageConfig,
    Task,
    VerbalizeConfig,
)
from tunecli.config.template import Field, Words, parse_template
from tunecli.data.mixture import labels as task_names
from tunecli.data.prompts import formats_of, judged_as_raw_text, trained_on_raw_text
from tunecli.data.tokens import EVERY
from tunecli.models.load import CLASSES, task_of
from tunecli.report.card_text import public, python, string

BUILTIN = "builtin:"
UNKNOWN = "PATH/TO/"
"""Stands before the name of a base model that whoever reads the card has to find."""
IN_PEFT = ("lora", "adalora", "vera", "loha", "lokr", "oft", "ia3", "ln_tuning")
"""Methods whose folders peft loads by itself. Several of them together it takes for LoRA only."""
PLAIN = "reward_model"
"""Folder of a reward run, with the head in the same peft checkpoint as the only other adapter."""
SOFT = ("prompt_tuning", "p_tuning")
"""Methods with tokens of their own, which the tokenizer does not know."""
VIRTUAL_TOKENS = "virtual_tokens"
"""peft's name for both of them, in small letters, as a folder that comes without a configuration has it."""


class Result(Enum):
    adapter = "adapter"
    adapters = "adapters"
    """several, in a folder each"""
    model = "model"


class Answers(Enum):
    """How a reward model reads an answer after its prompt."""

    chat = "chat"
    text = "text"
    second_text = "second_text"
    """an encoder: behind a separator"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What was made, as far as the code that uses it depends on that."""

    kind: Result
    task: Task = Task.causal_lm
    stage: StageConfig | None = None
    """None: not known"""
    methods: Mapping[str, str] = field(default_factory=dict)
    """name of an entry -> method"""
    column: str | None = None
    """`data.adapter_column`: the entries are alternatives"""
    raw: bool = False
    """a language model that was trained on plain text"""
    pairs: bool = False
    """a classifier that was trained on pairs of texts"""
    system: str | None = None
    """message in front of every conversation"""
    columns: Sequence[str] = ()
    """of a template that is asked with several of them"""
    tasks: Sequence[str] = ()
    """names of several tasks, each with labels of its own"""
    revision: str | None = None
    """of the base"""
    quantization: str = "none"
    """of the base"""
    answers: Answers = Answers.chat
    with_head: bool = False
    """a reward model whose adapter and head lie in one folder that peft alone loads"""
    in_run: bool = False
    """lies in its run directory, which tells `tunecli.prompt_ids` what it was trained to see"""

    @property
    def alternatives(self) -> list[str]:
        """Entries of which one is on at a time; none where all are on together."""
        entries = [name for name in self.methods if name != HEAD]
        return entries if self.column is not None and len(entries) > 1 else []

    @property
    def has_virtual_tokens(self) -> bool:
        return bool({*SOFT, VIRTUAL_TOKENS} & {*self.methods.values()})

    @property
    def in_plain_peft(self) -> bool:
        """Whether peft alone loads it to the same model. A head is an adapter of ours."""
        methods = list(self.methods.values())[: 1 if self.alternatives else None]
        if self.task.has_labels or not methods:
            return False
        return {*methods} == {"lora"} or (len(methods) == 1 and methods[0] in IN_PEFT)


def in_plain_peft(config: RunConfig) -> str:
    """The only entry beside the head of a reward model, if peft alone loads it; else none."""
    others = [name for name in config.peft if name != HEAD]
    alone = isinstance(config.stage, RewardConfig) and HEAD in config.peft and len(others) == 1
    return others[0] if alone and config.peft[others[0]].method in IN_PEFT else ""


def made_by(config: RunConfig, run_dir: Path, kind: Result | None = None) -> Made:
    """What a run made. `kind`: None for what lies in the run directory; else what became of that elsewhere."""
    made = kind or result_kind(config)
    data, stage = config.data, config.stage
    formats = formats_of(config, run_dir)
    told = [method.template for method in config.peft.values() if isinstance(method, PTuningConfig)]
    columns = [name for text in told for name in parse_template(text).columns if name != "label"]
    tasks = list(dict.fromkeys(task_names(training_sources(data)))) if stage.task.has_labels else []
    adds = data.system in (SystemPolicy.add, SystemPolicy.replace)
    return Made(
        kind=made,
        task=stage.task,
        stage=stage,
        methods={} if made is Result.model else {name: each.method for name, each in config.peft.items()},
        column=data.adapter_column,
        raw=stage.reads is not Task.causal_lm or trained_on_raw_text(data, formats),
        pairs="pair_classification" in formats,
        system=data.system_prompt if adds else None,
        columns=columns if len(columns) > 1 else (),
        tasks=tasks if len(tasks) > 1 else (),
        revision=config.model.revision,
        quantization=config.model.quantization.value,
        answers=_answers_of(config, run_dir) if isinstance(stage, RewardConfig) else Answers.chat,
        with_head=bool(in_plain_peft(config)),
        in_run=kind is None,
    )


def _answers_of(config: RunConfig, run_dir: Path) -> Answers:
    saved = run_dir / ("adapter" if config.peft else "model") / "tokenizer_config.json"
    if saved.is_file() and json.loads(saved.read_text(encoding="utf-8")).get("sep_token"):
        return Answers.second_text
    return Answers.text if judged_as_raw_text(config.data) else Answers.chat


def made_of(folder: Path, kind: Result) -> Made:
    """What lies in a folder that comes without a configuration."""
    saved, model = folder / "adapter_config.json", folder / "config.json"
    if saved.is_file():
        method = json.loads(saved.read_text(encoding="utf-8"))["peft_type"].lower()
        return Made(kind=kind, methods={folder.name: method})
    if model.is_file():
        return Made(kind=kind, task=task_of(PretrainedConfig.from_pretrained(folder)))
    return Made(kind=kind)


def usage(
    made: Made, path: str, *, weights: Sequence[str], tokenizer: str, base: str, published: bool = False
) -> str:
    """Code that loads the result and asks it, and the same in plain peft or transformers where they do.

    Args:
        path: what `tunecli.load` takes.
        weights: what peft or transformers take: the adapters or the model; once for all of a repository.
        base: what transformers take the base model by, or `builtin:NAME`.
        published: `path` is a repository on the Hub.
    """
    if isinstance(made.stage, RewardConfig):
        return _reward_usage(made, path, weights=weights, tokenizer=tokenizer, base=base, published=published)
    ours = made.in_run and not published or made.has_virtual_tokens
    parts = [_script(_with_tunecli(made, path, published=published), _asked(made, ours=ours))]
    asked = _asked(made, ours=False)
    if made.kind is Result.model:
        load = _with_transformers(made, string(weights[0]), tokenizer)
        parts.append(f"or with transformers alone:\n\n{_script(load, asked)}")
    elif made.in_plain_peft:
        load = _with_peft(made, _arguments(made, weights), tokenizer, base)
        base_form = "" if made.quantization == "none" else f", on the base that is not yet {made.quantization}"
        parts.append(f"or with peft alone{base_form}:\n\n{_script(load, asked)}")
    if note := _choice(made):
        parts.insert(0, note)
    if (made.task.has_labels or not made.raw) and not published and not made.alternatives:
        parts.append(_of_files(made, path))
    return "\n\n".join(parts)


def _reward_usage(
    made: Made, path: str, *, weights: Sequence[str], tokenizer: str, base: str, published: bool
) -> str:
    """The same of a reward model. A prompt's virtual tokens stand at places that only `tune score` knows."""
    parts = [note] if (note := _choice(made)) else []
    asked = _scored(made)
    if not made.has_virtual_tokens:
        parts.append(_script(_with_tunecli(made, path, published=published), asked))
    if made.kind is Result.model:
        load = _with_transformers(made, string(weights[0]), tokenizer)
        parts.append(f"or with transformers alone:\n\n{_script(load, asked)}")
    elif made.with_head and not published:
        load = _with_peft(made, [string(PLAIN)], PLAIN, base)
        config = f"config=AutoConfig.from_pretrained({string(PLAIN)})"
        load = [line.replace(".from_pretrained(base)", f".from_pretrained(base, {config})") for line in load]
        load = [line.replace("import AutoModel", "import AutoConfig, AutoModel") for line in load]
        parts.append(f"or with peft alone, from `{PLAIN}/`, which holds the head too:\n\n{_script(load, asked)}")
    else:
        parts.append("Without tunecli it does not load; `tune merge` makes a plain model of it where methods allow.")
    if not published and not made.alternatives:
        parts.append(f"`tune score {path} data.path=FILE` scores every row of a file.")
    return "\n\n".join(parts)


def _scored(made: Made) -> list[str]:
    """Lines that print the score of an answer, read as in training: up to its end of turn, or as a second text."""
    if made.answers is Answers.second_text:
        lines = ['inputs = tokenizer("Hello", "Hi!", return_tensors="pt").to(model.device)']
    elif made.answers is Answers.text:
        lines = [
            'text = "A prompt. " + "An answer." + (tokenizer.eos_token or "")',
            'inputs = tokenizer(text, return_tensors="pt").to(model.device)',
        ]
    else:
        system = f'{{"role": "system", "content": {string(made.system)}}}, ' if made.system else ""
        lines = [
            f'chat = [{system}{{"role": "user", "content": "Hello"}}, {{"role": "assistant", "content": "Hi!"}}]',
            "text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip()",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)',
        ]
    return [*lines, "print(model(**inputs).logits.item())"]


def _script(load: Sequence[str], asked: Sequence[str]) -> str:
    needs_torch = any("torch." in line for line in asked)
    return python("\n".join([*(["import torch"] if needs_torch else []), *load, *asked]))


def _choice(made: Made) -> str:
    names = made.alternatives
    if not names:
        return ""
    if made.column == EVERY:
        return (
            f"Each of its {len(names)} adapters was trained by itself for the same task. The code loads the first; "
            "for the answer of all, ask each and take what most of them say."
        )
    return (
        f"Each of its {len(names)} adapters is for other rows: those that name it in the column "
        f"{string(made.column or '')} of the data. The code loads the first; name another in `path`. Several in one "
        "batch: `tunecli.peft_methods.by_row.route_rows`."
    )


def _of_files(made: Made, path: str) -> str:
    what = "labels" if made.task.has_labels else "answers"
    task = " --task NAME" if made.tasks else ""
    pairs = ", pairs of texts as it was trained on too" if made.pairs and made.has_virtual_tokens else ""
    return f"`tune predict {path} FILE{task}` {what} every row of a file{pairs}."


def _with_tunecli(made: Made, path: str, *, published: bool) -> list[str]:
    """The first lines, with `path`, `model` and `tokenizer`."""
    lines, place, inside = ["import tunecli"], string(path), "/adapter/"
    if published and made.kind is Result.adapters:
        lines.append("from huggingface_hub import snapshot_download")
        place, inside = f"snapshot_download({place})", "/"
    first, *others = [string(inside + name) for name in made.alternatives] or [""]
    if first:
        place = f"{place} + {first}"
    comment = f"  # or {' or '.join(others)}" if others else ""
    return [*lines, "", f"path = {place}{comment}", "model, tokenizer = tunecli.load(path)"]


def _arguments(made: Made, weights: Sequence[str]) -> list[str]:
    """What peft loads each adapter by, in Python."""
    if made.kind is Result.adapters and len(weights) == 1:  # in folders of one repository
        found = [f"{string(weights[0])}, subfolder={string(name)}" for name in made.methods]
    else:
        found = [string(each) for each in weights]
    return found[:1] if made.alternatives else found


def _with_transformers(made: Made, weights: str, tokenizer: str, before: Sequence[str] = ()) -> list[str]:
    """`weights`: an expression. `before`: lines that it needs."""
    name = CLASSES[made.task].__name__
    return [
        f"from transformers import {name}, AutoTokenizer",
        "",
        *before,
        f"tokenizer = AutoTokenizer.from_pretrained({string(tokenizer)})",
        f"model = {name}.from_pretrained({weights})",
    ]


def _with_peft(made: Made, adapters: Sequence[str], tokenizer: str, base: str) -> list[str]:
    """`adapters`: arguments for each of them, in Python."""
    imports = ["from peft import PeftModel"]
    named = f"base = {string(base)}"
    if base.startswith(BUILTIN):
        imports.append("from tunecli.models.load import resolve_path")
        named = f"base = resolve_path({string(base)})  # a tiny model that tunecli makes"
    elif base.startswith(UNKNOWN):
        named += "  # it was a local folder: put in where you have it"
    revision = f", revision={string(made.revision)}" if made.revision and not base.startswith(UNKNOWN) else ""
    lines = [*imports, *_with_transformers(made, f"base{revision}", tokenizer, [named])]
    lines.append(f"model = PeftModel.from_pretrained(model, {adapters[0]})")
    more = [f"adapter_{number}" for number in range(2, len(adapters) + 1)]
    lines += [
        f"model.load_adapter({each}, adapter_name={string(name)})"
        for each, name in zip(adapters[1:], more, strict=True)
    ]
    if more:
        lines.append(f"model.base_model.set_adapter({json.dumps(['default', *more])})")
    return lines


def _asked(made: Made, *, ours: bool) -> list[str]:
    """Code that asks `model`. `ours`: by `tunecli.prompt_ids`, as virtual tokens need it."""
    if isinstance(made.stage, VerbalizeConfig):
        return _fill_gap(made, made.stage, ours=ours)
    return [*_inputs(made, _question(made), ours=ours), *_answer(made)]


def _question(made: Made) -> str:
    """What is asked, in Python."""
    if made.columns:
        return repr(json.dumps(dict.fromkeys(made.columns, "A text.")))
    if made.task is Task.masked_lm:
        return 'f"Paris is the {tokenizer.mask_token} of France."'
    if made.task is Task.token_classification:
        return string("Ada lives in New York .")
    if _restores_spans(made):
        return string("Thank you <extra_id_0> me to your party <extra_id_1> week.")
    if isinstance(made.stage, PretrainConfig):
        return string("Once upon a time")
    return string("Hello" if made.task is Task.causal_lm else "A text.")


def _restores_spans(made: Made) -> bool:
    return isinstance(made.stage, PretrainConfig) and made.stage.objective is Objective.span_corruption


def _inputs(made: Made, question: str, *, ours: bool) -> list[str]:
    """Lines that make `inputs` of what is asked.

    Args:
        question: in Python.
        ours: with `tunecli.prompt_ids`, which knows one text, not a pair.
    """
    if made.pairs and made.task.has_labels and not made.has_virtual_tokens:
        return [f'inputs = tokenizer({question}, "Another text.", return_tensors="pt").to(model.device)']
    if ours:
        ids = f"torch.tensor([tunecli.prompt_ids(path, {question})], device=model.device)"
        return [f"ids = {ids}", 'inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}']
    if made.raw or made.task is not Task.causal_lm:
        return [f'inputs = tokenizer({question}, return_tensors="pt").to(model.device)']
    system = f'{{"role": "system", "content": {string(made.system)}}}, ' if made.system else ""
    return [
        f'chat = [{system}{{"role": "user", "content": {question}}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ").to(model.device)",
    ]


def _answer(made: Made) -> list[str]:
    """Lines that print what the model says of `inputs`."""
    if made.task is Task.sequence_classification:
        return ["logits = model(**inputs).logits[0]", *_label(made)]
    if made.task is Task.token_classification:
        return [
            'for token, label in zip(inputs["input_ids"][0], model(**inputs).logits[0].argmax(-1).tolist()):',
            "    print(repr(tokenizer.decode(token)), model.config.id2label[label])  # a word's is that of its first",
        ]
    if made.task is Task.masked_lm:
        return [
            'gap = inputs["input_ids"][0] == tokenizer.mask_token_id',
            "print(tokenizer.decode(model(**inputs).logits[0, gap].argmax(-1)))",
        ]
    generated = "model.generate(**inputs, max_new_tokens=64)[0]"
    if made.task is Task.seq2seq_lm:
        return [f"print(tokenizer.decode({generated}, skip_special_tokens={not _restores_spans(made)}))"]
    return [
        f"answer = {generated}",
        'print(tokenizer.decode(answer[inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _label(made: Made) -> list[str]:
    """Lines that print the label that `logits` say."""
    problem = getattr(made.stage, "problem_type", ProblemType.single_label)
    if problem is ProblemType.regression:
        return ["print(logits.item())"]
    if problem is ProblemType.multi_label:
        return ["print([model.config.id2label[i] for i in (logits > 0).nonzero()[:, 0].tolist()])"]
    if not made.tasks:
        return ["print(model.config.id2label[logits.argmax().item()])"]
    own = f"label.startswith({string(made.tasks[0] + ': ')})"
    others = ", ".join(string(name) for name in made.tasks[1:])
    return [
        f"labels = [i for i, label in model.config.id2label.items() if {own}]  # its other tasks: {others}",
        "print(model.config.id2label[max(labels, key=lambda i: logits[i].item())])",
    ]


def _fill_gap(made: Made, stage: VerbalizeConfig, *, ours: bool) -> list[str]:
    """Lines that print the score of each label, as the stage scores it."""
    words = stage.verbalizer or {"LABEL": "WORD"}
    unknown = "" if stage.verbalizer else "  # put in the labels of the data, which are the words"
    masked = made.task is Task.masked_lm
    sentences = ", ".join(f"({string(start)}, {string(end)})" for start, end in map(_around_gap, stage.templates))
    if masked:
        scored = [
            "text = start.rstrip() + tokenizer.mask_token * len(word) + end",
            *_inputs(made, "text", ours=ours),
            'logits = model(**inputs).logits[0, inputs["input_ids"][0] == tokenizer.mask_token_id]',
        ]
    elif ours:
        scored = [
            "ids = [*tunecli.prompt_ids(path, start.rstrip()), *word]",
            "logits = model(torch.tensor([ids], device=model.device)).logits[0, -len(word) - 1 : -1]",
        ]
    else:
        scored = [
            'ids = [*tokenizer(start.rstrip())["input_ids"], *word]',
            "logits = model(torch.tensor([ids], device=model.device)).logits[0, -len(word) - 1 : -1]",
        ]
    return [
        f"sentences = [{sentences}]  # what stands before the gap, and behind it",
        f"words = {json.dumps(words)}{unknown}",
        "",
        "",
        "def score(start, end, word):",
        '    """The log-probability of the word in the gap."""',
        "    space = start[len(start.rstrip()) :]  # a part of the word",
        '    word = tokenizer(space + word, add_special_tokens=False)["input_ids"]',
        *(f"    {line}" for line in scored),
        "    return logits.log_softmax(-1)[torch.arange(len(word)), word].sum().item()",
        "",
        "",
        "for label, word in words.items():",
        "    print(label, sum(score(start, end, word) for start, end in sentences) / len(sentences))",
    ]


def _around_gap(template: str) -> tuple[str, str]:
    """The sentence before the gap and behind it, with texts for those of a row."""
    cloze = parse_cloze(template)
    return _with_texts(cloze.before), _with_texts(cloze.after)


def _with_texts(pieces: Sequence[Words | Field]) -> str:
    texts = {"text": "A text.", "text_pair": "Another text."}
    return "".join(piece.text if isinstance(piece, Words) else texts[piece.name] for piece in pieces)


def result_kind(config: RunConfig) -> Result:
    if not config.peft:
        return Result.model
    return Result.adapter if len(config.peft) == 1 else Result.adapters


def relation(kind: Result) -> str:
    """How the Hub calls what we made of the base model."""
    return "finetune" if kind is Result.model else "adapter"


def loadable(path: str) -> str:
    """What transformers load the base by; for one that is a folder on this machine, a place to fill in; a builtin
    model as it is."""
    return UNKNOWN + public(path) if not path.startswith(BUILTIN) and is_local(path) else path
