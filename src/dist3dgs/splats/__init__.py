"""Gaussians, renderers, densification, losses and export."""
