#!/usr/bin/env bash
# All tests, or the stages that are named: scripts/test.sh [check|fast|slow|workflow|slurm]... The first failure ends it.
set -euo pipefail
# Tests start many Pythons; each would compile every module anew.
unset PYTHONDONTWRITEBYTECODE
if [ $# -eq 0 ]; then set -- check fast slow workflow slurm; fi
for stage in "$@"; do
  started=$SECONDS
  case $stage in
    check) bash scripts/check.sh ;;
    # Two at a time share two cores; where the tests of a file share what one of them has made, two files.
    fast) python -m pytest -q -n 2 tests/unit tests/slurm -m "not slow and not slurm" ;;
    slow) python -m pytest -q -n 2 tests/unit -m slow ;;
    workflow) python -m pytest -q -n 2 --dist loadfile tests/workflow ;;
    # The tests that wait for long come first, in the order of tests/slurm/conftest.py.
    slurm)
      python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/slurm tests/gpu -m "slow or slurm or gpu"
      ;;
    *)
      echo "error: scripts/test.sh: no stage '$stage'; expected check, fast, slow, workflow or slurm" >&2
      exit 2
      ;;
  esac
  echo "$stage: $((SECONDS - started)) s"
done
