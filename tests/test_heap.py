"""Freed memory stays with the process."""

import os
import subprocess
import sys

import pytest

PROBE = """
import platform, resource, sys
import numpy as np
from tqa_jax import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 24, np.float64)  # 128 MiB, freed at once.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
done = heap.keep()
faults()
print(int(done), usual, faults())
"""


def probe(**environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES",)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_large_block_is_used_again():
    done, usual, after = probe()
    assert done
    # Pages are of 2 MiB where the kernel gives them, else of 4 KiB.
    assert usual >= 64
    assert after <= usual / 10


def test_settings_of_the_environment_win():
    done, usual, after = probe(GLIBC_TUNABLES="glibc.malloc.arena_max=4")
    assert not done
    assert after >= usual / 2
