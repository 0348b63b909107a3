"""The files that a run leaves behind: attempts, events, record."""
