"""Start a run's ranks and supervise them."""
