"""Libraries are imported without what they would only load to be idle."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch

from tunecli.engine.imports import import_bitsandbytes

ITS_CODE = """
import torch

@torch.compile(dynamic=False)
def one(): ...

def two(): ...

compiled = torch.compile(two)
"""


def test_what_bitsandbytes_wants_compiled_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bitsandbytes.py").write_text(ITS_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    compile = torch.compile
    import_bitsandbytes()
    found = sys.modules.pop("bitsandbytes")
    assert found.__file__ == str(tmp_path / "bitsandbytes.py")
    assert type(found.one) is FunctionType and found.compiled is found.two
    assert torch.compile is compile
