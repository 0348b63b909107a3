#!/usr/bin/env bash
# The stages of dist3dgs.bench.gpu, one JSON; started again, it goes on with the stages that are left. In the Python
# given where its PyTorch sees a GPU, as it is, with packages from WHEELS (default: wheels/, made by `make gpu-wheels`)
# where it lacks some; else in an environment of its own with the CUDA build. Called by make: PYTHON, BIN (left out of
# PATH), FOX, GSPLAT, COLMAP, FACTOR, OUT, OWN, WHEELS.
set -euo pipefail
OUT=${OUT:-docs/benchmarks/gpu-check.json}
FOX=${FOX:-}
outside=${PATH#"${BIN:-}":}
sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }

python=""
if [ -z "${OWN:-}" ]; then
  # This checkout's own environment, first on make's PATH, mostly has the CPU build; the one outside may not.
  for candidate in "$PYTHON" "$(PATH=$outside command -v "$PYTHON" || true)"; do
    if [ -n "$candidate" ] && sees_gpu "$candidate"; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "error: no NVIDIA GPU here (nvidia-smi finds none) and none that $PYTHON's PyTorch sees; nothing was checked" >&2
    exit 2
  fi
  echo "gpu-check: $PYTHON has no PyTorch that sees the GPU; an environment with one is made in .venv-cuda"
  PATH=$outside make setup TORCH=cuda VENV=.venv-cuda
  python=$PWD/.venv-cuda/bin/python
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_DEVICE_ORDER=${CUDA_DEVICE_ORDER:-PCI_BUS_ID} # as nvidia-smi numbers the GPUs
WHEELS=${WHEELS:-wheels}
lacks=0
"$python" -m dist3dgs.bench.needs 2>/dev/null || lacks=$?
if [ -d "$WHEELS" ] && [ "$lacks" = 2 ]; then # 3: too old, which no package mends
  if ! "$python" -m pip --version >/dev/null; then
    echo "error: $python has no pip, which installs the packages in $WHEELS: $python -m ensurepip" >&2
    exit 2
  fi
  # Into a folder of this checkout: the Python that was found is nobody's to change.
  if ! "$python" -m pip install --disable-pip-version-check -q --no-index --no-deps --upgrade --find-links "$WHEELS" \
    --target .gpu-packages -r scripts/gpu-wheels.txt; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "error: the packages in $WHEELS are not all there, or for another Python than $python, which is $version;" \
      "where there is internet: make gpu-wheels FOR=$version" >&2
    exit 2
  fi
  export PYTHONPATH="$PYTHONPATH:$PWD/.gpu-packages"
  export PATH="$PWD/.gpu-packages/bin:$PATH" # ninja
fi
"$python" -m dist3dgs.bench.needs || exit 2
"$python" -m dist3dgs.bench.gpu ${FOX:+--scene "$FOX"} ${GSPLAT:+--repository "$GSPLAT"} ${COLMAP:+--colmap "$COLMAP"} \
  ${FACTOR:+--factor "$FACTOR"} --out "$OUT"
echo "gpu-check: $OUT"
