"""The state of a study's points: table, terminal, summary."""
