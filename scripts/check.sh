#!/usr/bin/env bash
# Everything that is checked without running the product.
set -euo pipefail
ruff format --check --quiet src tests
ruff check --quiet src tests
mypy
snakefmt --check Snakefile workflow
snakemake --lint --snakefile Snakefile
