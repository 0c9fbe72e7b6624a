"""Imports of libraries that would take longer than they need to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def import_bitsandbytes() -> None:
    """Import it, as peft does at its own import, without inductor: a sixth of the CPU time that imports take in all.

    bitsandbytes hands one function to torch.compile while it is imported. That function stands in where neither its
    CUDA nor its CPU kernels are there; it stays as it is written.
    """
    compile = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else lambda decorated: decorated
