"""Measurements: what a thing costs on this machine."""
