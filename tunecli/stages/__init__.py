"""Training stages: a module each, a row in `STAGES`, a schema in `config/stage.py`, a YAML and a recipe."""

from __future__ import annotations

from tunecli.stages.sft import SFT

STAGES = {"sft": SFT}
