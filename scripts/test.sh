#!/usr/bin/env bash
# All checks: set-up, lint, format, types and the tests, slow ones included. Arguments go to pytest:
#   bash scripts/test.sh -m 'not slow'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python scripts/fetch_assets.py
echo "test: ruff check"
.venv/bin/ruff check
echo "test: ruff format --check"
.venv/bin/ruff format --check
echo "test: mypy"
.venv/bin/mypy
echo "test: pytest $*"
.venv/bin/pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
