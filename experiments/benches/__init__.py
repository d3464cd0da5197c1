"""Benchmarks by name: `run(rounds, quick) -> str` of a file here is one of them."""
