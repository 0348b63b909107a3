"""Kernels of the CPU renderer and loss."""
