"""Build a run's record from its evidence."""
