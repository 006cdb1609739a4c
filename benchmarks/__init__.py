"""Benchmarks of shade_fast: `python -m benchmarks list`, `python -m benchmarks run`; see README.md."""
