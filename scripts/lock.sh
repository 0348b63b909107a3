#!/usr/bin/env bash
# requirements.lock from pyproject.toml. The pin of torch is chosen by hand: its CPU build must exist everywhere we run.
set -euo pipefail
python -m pip --disable-pip-version-check -q install pip-tools setuptools
torch=${1:-$(sed -n 's/^torch==//p' requirements.lock)}
pip-compile --quiet --extra dev --strip-extras --upgrade-package "torch==$torch" --no-emit-index-url \
  --no-emit-find-links --no-emit-trusted-host --no-emit-options --output-file requirements.lock pyproject.toml
# A local version (+cpu) names one build; the lock names the version, TORCH= chooses the build.
sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' requirements.lock
