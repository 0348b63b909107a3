#!/usr/bin/env bash
# Everything that is checked without running the product.
set -euo pipefail
ruff format --check --quiet src tests scripts
ruff check --quiet src tests scripts
mypy
snakefmt --check Snakefile workflow
snakemake --lint --snakefile Snakefile
