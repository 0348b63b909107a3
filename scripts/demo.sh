#!/usr/bin/env bash
# The demo on this machine: the default config with both strategies, and where its report is.
set -euo pipefail
if snakemake --profile profiles/local --configfile config/demo.yaml --dry-run --quiet -- all 2>&1 | grep -q "Nothing to be done"; then
  echo "demo: nothing to do, everything is up to date: $PWD/results/report/report.html"
  exit 0
fi
snakemake --profile profiles/local --configfile config/demo.yaml -- all
echo "demo: open $PWD/results/report/report.html"
