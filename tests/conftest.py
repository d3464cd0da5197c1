"""One cache of compiled programs for the tests and the commands that they start."""

import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles equal programs once a session, whatever the number of workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "tqa_cache"
    os.environ["TQA_CACHE"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.devices()  # Begins JAX: commands that a test calls here keep its one device.
    yield
    jax.config.update("jax_compilation_cache_dir", None)
