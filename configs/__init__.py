"""Configurations, each a small change to `default.py`."""
