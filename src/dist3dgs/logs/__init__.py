"""Read logs of training jobs: lines, times, facts, step series, samples. Never imports torch."""
