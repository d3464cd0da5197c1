"""Judging AI-generated talking-face videos with JAX."""

__version__ = "0.1.0"
