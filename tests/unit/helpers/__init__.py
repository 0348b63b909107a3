"""Inputs that the unit tests share."""
