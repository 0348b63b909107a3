"""Benchmarks of renderer, training, ingest and log readers on this machine."""
