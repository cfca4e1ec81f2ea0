"""From a network to the scores, tables and submissions of benchmarks."""
