"""The README of a run directory, which is the model card of its result on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunecli.config.data import training_sources
from tunecli.config.paths import display
from tunecli.config.run import RunConfig
from tunecli.engine.checkpoint import write_atomically


def write_card(
    config: RunConfig, run_dir: Path, *, data: Mapping[str, Any] | None, results: Mapping[str, float]
) -> None:
    """Write `README.md`: what was trained on what, the result, and how to load it. `data` None: it was streamed."""
    base = _public(config.model.path)
    sources = ", ".join(f"`{_public(source.path)}`" for source in training_sources(config.data))
    counts = f"{data['examples']} examples, {data['trained_tokens']} trained tokens" if data else "streamed"
    methods = ", ".join(config.peft) or "full fine-tuning"
    what = "the model" if not config.peft else f"an adapter ({methods}) for `{base}`"
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in results.items())
    quantized = "" if config.model.quantization.value == "none" else f" in {config.model.quantization.value}"
    write_atomically(
        run_dir / "README.md",
        f"""---
base_model: {base}
library_name: {"peft" if config.peft else "transformers"}
pipeline_tag: text-generation
tags: [tunecli, {config.stage.name}]
---

# {config.recipe}

Made with tunecli: {what}.

| | |
|---|---|
| base model | `{base}`{quantized} |
| method | {methods} |
| stage | {config.stage.name} |
| data | {sources}: {counts} |
| seed | {config.seed} |

## Result

| metric | value |
|---|---|
{rows}

## Use

```python
import tunecli

model, tokenizer = tunecli.load("{display(run_dir)}")
```

`config.yaml` is the whole configuration, `metrics.jsonl` the training log, `environment.json` the versions.
""",
    )


def _public(path: str) -> str:
    """A Hub id as it is; of a path on this machine only its last part, since cards are published."""
    return Path(path).name if Path(path).is_absolute() else path
