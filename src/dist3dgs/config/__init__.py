"""The study's configuration: models, files, matrix of runs."""
