"""Benchmarks, each run as `python -m bench.NAME`; what they measured lies in `results/`."""
