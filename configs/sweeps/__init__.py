"""Sweeps: many runs of one base configuration, compared in a table."""
