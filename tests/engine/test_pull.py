"""The pull towards the weights that training started from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from training import trained_run

from tunecli.config.checks import find_problems
from tunecli.config.compose import compose_run
from tunecli.config.stage import ProblemType
from tunecli.engine.pull import PullToStart
from tunecli.models.load import Head, load_model


def test_it_goes_back_by_its_share_of_the_way():
    pulled, spared = nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [pulled], "lr": 0.1}, {"params": [spared], "lr": 0.5}])
    hook = PullToStart(optimizer, 4.0, {spared})
    with torch.no_grad():
        pulled += 1
        spared += 1
    hook.after_step(1)
    hook.after_step(2)
    assert_close(pulled.detach(), torch.full((3,), 2 + 0.6**2))
    assert torch.equal(spared.detach(), torch.full((2,), 2.0))


def test_it_ends_where_the_penalty_of_the_paper_has_its_minimum():
    """Of (w - 1)^2 / 2 + a/2 (w - 0)^2: at 1 / (1 + a)."""
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    hook = PullToStart(optimizer, 3.0, set())
    for step in range(4000):
        optimizer.zero_grad()
        ((weight - 1) ** 2 / 2).backward()
        optimizer.step()
        hook.after_step(step)
    assert_close(weight.detach(), torch.tensor(0.25), atol=1e-3, rtol=0)


def test_a_full_pull_leaves_a_run_at_its_start_but_for_the_new_head(tmp_path: Path):
    words = ["peft=[]", "train.max_steps=2", "train.eval_every=null", "train.lr_scheduler=constant"]
    words += ["train.learning_rate=1e-3", "train.pull_to_start=1000"]
    pulled = load_file(trained_run(tmp_path / "run", "smoke_classify", *words) / "model" / "model.safetensors")
    config = compose_run("smoke_classify", words).config
    head = Head(labels=["negative", "positive"], problem_type=ProblemType.single_label, seed=config.seed)
    lm = load_model(config.model, dtype=torch.float32, device=torch.device("cpu"), task=config.stage.task, head=head)
    start = lm.state_dict()
    encoder = {name for name in pulled if not name.startswith("classifier")}
    assert 30 < len(encoder) < len(pulled)
    for name in pulled:
        (assert_close if name in encoder else differs)(pulled[name], start[name])


def differs(one: torch.Tensor, other: torch.Tensor):
    assert not torch.equal(one, other)


def test_a_pull_beyond_the_start_is_refused():
    config = compose_run("smoke_sft_full", ["train.learning_rate=0.01", "train.pull_to_start=101"]).config
    (problem,) = find_problems(config, new_run=True)
    assert problem.where == "train.pull_to_start" and "train.pull_to_start=1 " in problem.fix
