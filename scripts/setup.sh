#!/usr/bin/env bash
# A virtual environment from the lock. Called by make: PYTHON, VENV and TORCH_INDEX come from there.
set -euo pipefail
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $PYTHON is not Python 3.11 or newer; install it, or name one: make setup PYTHON=python3.12" >&2
  exit 2
fi
if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "error: $PYTHON has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2
  exit 2
fi
echo "setup: environment in $VENV (once; PyTorch is the large part)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@"; }
torch=$(sed -n 's/^torch==/torch==/p' requirements.lock)
if ! "$VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; then
  # By itself: what it needs comes with the lock, so that its own index is asked for one package only (an index that
  # does not answer costs seconds per package).
  # shellcheck disable=SC2086  # two words: the option and its address
  pip install --retries 2 --no-deps "$torch" ${TORCH_INDEX:-}
fi
pip install -r requirements.lock
pip install --no-deps -e .
