#!/usr/bin/env bash
# Make an environment with TRL beside the same torch, transformers and peft that this project is tested with. Safe to
# run again.
#   bash scripts/bench/setup_trl.sh                       # .venv-bench, TRL 1.16.0: SFTTrainer
#   bash scripts/bench/setup_trl.sh .venv-ppo 1.12.0      # the last release that has PPO
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=${1:-.venv-bench}
version=${2:-1.16.0}
python=${PYTHON:-python3}
[ -x "$folder/bin/pip" ] || "$python" -m venv --clear "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check --no-input -c constraints.txt "trl[peft]==$version" torch psutil
"$folder/bin/python" -c 'import importlib.metadata as m; print(*(f"{p} {m.version(p)}" for p in ("trl", "torch", "transformers", "peft")), sep=", ")'
