#!/usr/bin/env bash
# Make .venv-bench: TRL beside the same torch, transformers and peft that this project is tested with. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
[ -x .venv-bench/bin/pip ] || "$python" -m venv --clear .venv-bench
.venv-bench/bin/python -m pip install -q --disable-pip-version-check --no-input -c constraints.txt "trl[peft]==1.16.0" torch psutil
.venv-bench/bin/python -c 'import importlib.metadata as m; print(*(f"{p} {m.version(p)}" for p in ("trl", "torch", "transformers", "peft")), sep=", ")'
