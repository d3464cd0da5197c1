"""Benchmarks by name: a file here has `run(rounds, *, quick) -> list[timing.Table]`."""
