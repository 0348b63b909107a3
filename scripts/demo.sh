#!/usr/bin/env bash
# The demo: the default config on this machine, and where its report is.
set -euo pipefail
if snakemake --profile profiles/local --dry-run --quiet all 2>&1 | grep -q "Nothing to be done"; then
  echo "demo: nothing to do, everything is up to date: $PWD/results/report/report.html"
  exit 0
fi
snakemake --profile profiles/local all
echo "demo: open $PWD/results/report/report.html"
