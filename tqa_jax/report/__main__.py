"""Runs the command."""

import sys

from tqa_jax.report import page

if __name__ == "__main__":
    sys.exit(page.main())
