"""No option is accepted and ignored: what another value makes idle is refused, and both ways out are named."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.errors import Problem
from tunecli.config.idle import EVERY, IDLE
from tunecli.config.peft import PEFT_SCHEMAS

TEXT = "peft.prompt_tuning.init_text=abc"
TOP_K = "peft.prompt_tuning.init_top_k=99"
HIDDEN = "peft.p_tuning.encoder_hidden_size=8"
PREFIX_HIDDEN = "peft.prefix_tuning.encoder_hidden_size=8"
FACTOR = "peft.houlsby.reduction_factor=8"
INNER = "peft.ia3.feedforward_modules=[down_proj]"
VOTE = "evaluation.combine=vote"
EACH = "data.adapter_column='*'"
TWO = "peft=[lora,prompt_tuning]"


def problems_of(*words: str, recipe: str = "smoke_sft_lora") -> list[Problem]:
    return find_problems(compose_run(recipe, [*words]).config)


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (["peft=prompt_tuning", TEXT], "peft.prompt_tuning.init=text"),
        (["peft=prompt_tuning", "peft.prompt_tuning.init_labels=[a]"], "peft.prompt_tuning.init=labels"),
        (["peft=prompt_tuning", "peft.prompt_tuning.init=random_uniform", TOP_K], "peft.prompt_tuning.init=labels"),
        (["peft=p_tuning", "peft.p_tuning.encoder=none", HIDDEN], "peft.p_tuning.encoder=lstm"),
        (
            ["peft=prefix_tuning", "peft.prefix_tuning.prefix_projection=false", PREFIX_HIDDEN],
            "peft.prefix_tuning.prefix_projection=true",
        ),
        (["peft=ia3", INNER], "peft.ia3.target_modules=[down_proj]"),
        (["peft=houlsby", "peft.houlsby.bottleneck_size=4", FACTOR], "peft.houlsby.bottleneck_size=null"),
        (["peft=houlsby", "peft.houlsby.invertible_reduction_factor=4"], "peft.houlsby.invertible=true"),
        ([TWO, VOTE, EACH], "evaluation.choices=[yes,no]"),
        ([TWO, VOTE, "evaluation.choices=[yes,no]"], EACH),
    ],
)
def test_an_idle_value_is_refused_and_counts_once_mended(words: list[str], mend: str):
    (problem,) = problems_of(*words)
    key = problem.where
    assert any(word.startswith(f"{key}=") for word in words)
    assert mend.partition("=")[0] in problem.fix and f"{key}=" in problem.fix
    assert key not in [left.where for left in problems_of(*words, mend)]


def test_one_template_gives_one_answer_and_two_are_combined():
    one = "stage.templates=['{text} {mask}']"
    (problem,) = problems_of(one, VOTE, recipe="smoke_verbalize")
    assert problem.where == "evaluation.combine" and "stage.templates" in problem.fix
    assert problems_of("stage.templates=['{text} {mask}','{text}? {mask}']", VOTE, recipe="smoke_verbalize") == []


def test_the_names_of_the_table_are_fields():
    assert IDLE.keys() <= {field.name for schema in PEFT_SCHEMAS.values() for field in fields(schema)}


def test_an_ensemble_is_called_the_same_here_and_where_rows_are_read():
    from tunecli.data import tokens

    assert tokens.EVERY == EVERY
