"""Sample what a run uses on its node."""
