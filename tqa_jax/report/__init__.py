"""One HTML page about a finished run: `python -m tqa_jax.report --workdir=RUN`."""
