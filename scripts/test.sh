#!/usr/bin/env bash
# All tests: checks, fast unit tests, slow ones, the workflow for real, a real Slurm. The first failure ends it.
set -euo pipefail
bash scripts/check.sh
# Tests that need no machine to themselves share two cores.
python -m pytest -q -n 2 tests/unit -m "not slow"
python -m pytest -q -n 2 tests/unit -m slow
python -m pytest -q tests/workflow
python -m pytest -q tests/slurm tests/gpu
