"""`tune ls peft`: what is true of methods, and how much each trains of a recipe's model, as a run would say it."""

from __future__ import annotations

import json

import pytest
import torch

from tunecli.cli import main
from tunecli.config.compose import compose_run
from tunecli.config.peft import PEFT_SCHEMAS
from tunecli.config.peft_facts import FACTS
from tunecli.config.run import with_head
from tunecli.count import LABELS, counts
from tunecli.models.load import load_model, num_parameters
from tunecli.peft_methods.composition import inject
from tunecli.peft_methods.rehearsal import expected_head


def counted(*words: str) -> dict[str, dict]:
    recipe, *overrides = words
    return {row["name"]: row for row in counts(recipe, overrides)}


@pytest.mark.parametrize(
    "words",
    [
        ["smoke_sft_lora", "peft.lora.r=3"],
        ["smoke_sft_lora", "peft=adalora"],
        ["smoke_sft_lora", "peft=[freeze,prefix_tuning,lora]", "peft.freeze.norms=true"],
        ["smoke_seq2seq", "peft=[houlsby,bitfit]", "peft.bitfit.add_missing=true"],
        ["smoke_classify", "peft=lora", "stage.labels=[a,b,c]"],
        ["smoke_classify", "peft=full"],
    ],
    ids=" ".join,
)
def test_counts_are_those_of_the_model_that_a_run_trains(words: list[str]) -> None:
    config = with_head(compose_run(words[0], words[1:]).config)
    task, head = config.stage.task, expected_head(config, LABELS)
    model = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), task=task, head=head)
    inject(model, config.peft, seed=0)
    rows = counted(*words)
    row = rows[" + ".join(name for name in config.peft if name != "head") or "full"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (row["trained"], row["total"]) == (trained, num_parameters(model))
    assert row["share"] == trained / num_parameters(model) and not row["why"]


def test_every_method_has_a_row_and_what_does_not_fit_says_why_and_what_would() -> None:
    rows = counted("smoke_sft_lora")
    assert list(rows) == ["full", *PEFT_SCHEMAS]
    assert rows["full"]["trained"] == rows["full"]["total"]
    refused = {name for name, row in rows.items() if row["trained"] is None}
    assert refused == {"bitfit", "freeze"}
    assert "no biases to train" in rows["bitfit"]["why"] and "add_missing=true" in rows["bitfit"]["fix"]
    assert "selects no weights" in rows["freeze"]["why"] and "peft.freeze.last_n_layers=2" in rows["freeze"]["fix"]


def test_a_4_bit_base_takes_what_the_table_says() -> None:
    rows = counted("smoke_sft_lora", "model.quantization=nf4", "peft.lora.r=4")
    refused = {name for name, row in rows.items() if "nf4 weights" in row["why"]}
    assert refused >= {name for name, facts in FACTS.items() if not facts.quantized}
    assert refused == {"full", "loha", "lokr", "freeze"}
    assert rows["lora"]["trained"] == counted("smoke_sft_lora", "peft.lora.r=4")["lora"]["trained"]


@pytest.mark.parametrize(
    "words", [[], ["recipe=smoke_classify", "peft=[lora,bitfit,houlsby]"]], ids=["facts", "counts"]
)
def test_the_tables_fit_into_100_columns(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "peft", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in FACTS)


def test_every_letter_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls", "peft"])
    legend = capsys.readouterr().out.partition("\n\n")[2]
    letters = {
        word for facts in FACTS.values() for word in ("d", "n", "b", "d_kv", "d_ff") if word in facts.count.split()
    }
    assert letters == {"d", "n", "b", "d_kv", "d_ff"}
    assert all(f"{letter}:" in legend for letter in letters)


def test_the_head_is_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls", "peft", "recipe=smoke_classify", "stage.labels=[a,b,c]"])
    assert "a head for 3 labels is trained with each" in capsys.readouterr().out
    main(["ls", "peft", "recipe=smoke_classify", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["name"] == "full"


def test_full_has_nothing_to_merge(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls", "peft"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("full")).split()[-2:] == ["-", "no"]
    assert any(line.startswith("merges:") and line.endswith("-: full leaves a whole model") for line in lines)


def test_bitfit_does_not_merge_what_it_adds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls", "peft"])
    lines = capsys.readouterr().out.splitlines()
    assert "yes *" in next(line for line in lines if line.startswith("bitfit"))
    assert "* bitfit: not with peft.bitfit.add_missing" in lines
