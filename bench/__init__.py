"""Benchmarks: one file a question, one harness. `python -m bench --help`."""
