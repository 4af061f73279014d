"""Benchmarks: `python -m bench NAME [--full]`; see README.md in this folder."""
