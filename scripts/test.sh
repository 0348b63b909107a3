#!/usr/bin/env bash
# All tests: checks, fast unit tests, slow ones, the workflow for real, a real Slurm. The first failure ends it.
set -euo pipefail
bash scripts/check.sh
python -m pytest -q tests/unit -m "not slow"
python -m pytest -q tests/unit -m slow
python -m pytest -q tests/workflow
python -m pytest -q tests/slurm tests/gpu
