#!/usr/bin/env bash
# All tests: checks, fast unit tests, slow ones, the workflow, Slurm.
set -euo pipefail
bash scripts/check.sh
python -m pytest -q tests/unit -m "not slow and not gpu"
python -m pytest -q tests --ignore=tests/gpu -m "slow or slurm or not slurm" --deselect tests/unit -p no:cacheprovider
