#!/usr/bin/env bash
# From a fresh clone to a trained adapter: set-up, a small model and real data, a short LoRA run.
set -euo pipefail
steps=30
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/python scripts/fetch_assets.py
echo "quickstart: training $steps steps of recipe sft_lora_smollm2 (about 4 minutes on two cores)"
.venv/bin/tune run recipe=sft_lora_smollm2 train.max_steps="$steps" train.eval_every="$steps"
.venv/bin/python scripts/quickstart_answers.py outputs/sft_lora_smollm2/latest
.venv/bin/python scripts/quickstart_summary.py outputs/sft_lora_smollm2/latest
