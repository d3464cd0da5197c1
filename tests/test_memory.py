"""What a program needs, and what is said when a device is too small."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest

from configs import optimized
from experiments.benches import memory as bench
from tqa_jax import machine, memory, schema

PLAIN = memory.Settings(batch_size=64, accumulation=1, remat="", dtype="float32")


class Device:
    """An accelerator with a memory limit."""

    platform = "gpu"

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return None if self.limit is None else {"bytes_limit": self.limit}


def compiled(rows=1000):
    """A program that needs an intermediate matrix and donates its first argument."""

    def work(state, other):
        square = jnp.sin(state[:, None] * other[None, :])
        return state + square @ other

    vector = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return jax.jit(work, donate_argnums=0).lower(vector, vector).compile()


def test_needed_counts_donated_arguments_once_and_the_working_memory():
    need = memory.needed(compiled())
    assert need.resident == 2 * 1000 * 4
    assert 4 * 1000**2 <= need.temp <= 1.1 * 4 * 1000**2
    assert need.total == need.resident + need.temp


def test_an_accelerator_says_its_own_limit():
    assert memory.available(Device(16_000)) == 16_000
    assert memory.available(Device(None)) is None


def test_devices_of_a_cpu_share_its_memory():
    device = jax.local_devices(backend="cpu")[0]
    number = jax.local_device_count("cpu")
    assert memory.available(device) == machine.memory() // number


def said(resident, temp, limit, platform="gpu", **changes):
    settings = dataclasses.replace(PLAIN, **changes)
    need = memory.Needed(int(resident * 1e9), int(temp * 1e9))
    limit = None if limit is None else int(limit * 1e9)
    return memory.describe(need, limit, settings, platform=platform)


def test_what_fits_is_said_without_advice():
    assert said(1, 2.1, 16) == "training needs 3.1 GB of memory, device has 16 GB"
    assert said(1, 2.1, None) == "training needs 3.1 GB of memory"


@pytest.mark.parametrize(
    ("temp", "platform", "devices", "advice"),
    [
        # 25 GB in 2 parts, and a quarter more, is 15.6 GB; 13.4 are left.
        (25, "gpu", 1, "train.accumulation=4"),
        (14, "gpu", 1, "train.accumulation=2"),
        # Spread over 4 devices, 16 clips lie on each.
        (
            *(600, "gpu", 4),
            "train.accumulation=16, model.remat=nothing_saveable, model.dtype=bfloat16",
        ),
        (600, "cpu", 4, "train.accumulation=16, model.remat=nothing_saveable"),
    ],
)
def test_advice_is_the_coarsest_accumulation_that_fits(temp, platform, devices, advice):
    text = said(1, temp, 16, platform, devices=devices)
    assert text.endswith(f"device has 16 GB; try {advice}")


def test_advice_is_what_is_not_in_use():
    fine = {"accumulation": 64}
    assert said(1, 30, 16, **fine).endswith(
        "try model.remat=nothing_saveable, model.dtype=bfloat16"
    )
    fine["remat"] = "nothing_saveable"
    assert said(1, 30, 16, **fine).endswith("try model.dtype=bfloat16")
    fine["dtype"] = "bfloat16"
    assert said(1, 30, 16, **fine).endswith("a smaller data.max_frames or model.width")


def test_a_data_set_that_fills_the_device_should_be_streamed():
    # 15 GB are 13.97 GiB; half of that is below the split's size, so it is streamed.
    text = said(16, 10, 16, data_bytes=15_000_000_000)
    assert text.endswith("try data.memory_gb=7, train.accumulation=2")


def test_a_program_that_cannot_fit_is_refused():
    with pytest.raises(
        schema.InputError, match=r"has 0.002 GB; try train.accumulation"
    ):
        memory.check(compiled(), Device(2_000_000), PLAIN)


@pytest.mark.parametrize(("limit", "level"), [(4_200_000, "WARNING"), (10**8, "INFO")])
def test_a_program_that_fits_is_logged(caplog, limit, level):
    with caplog.at_level(logging.INFO):
        memory.check(compiled(), Device(limit), PLAIN)
    (record,) = caplog.records
    assert record.levelname == level
    assert ("try" in record.message) == (level == "WARNING")


def test_on_a_cpu_too_little_memory_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 1_000_000)
    with caplog.at_level(logging.INFO):
        memory.check(compiled(), jax.local_devices(backend="cpu")[0], PLAIN)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "try train.accumulation" in record.message


@pytest.mark.slow
def test_a_run_of_the_optimized_config_fits_16_gb():
    config = optimized.get_config()
    assert config.train.batch_size == 64 and config.data.max_frames == 150
    program = bench.compile_run(config, bench.largest_split(config))
    assert memory.needed(program).total <= 16e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accumulation", "remat", "mib"), [(16, "", 420), (64, "nothing_saveable", 220)]
)
def test_a_step_of_64_clips_needs_little_working_memory(accumulation, remat, mib):
    config = optimized.get_config()
    changes = {"train.accumulation": accumulation, "model.remat": remat}
    config.update_from_flattened_dict(changes | {"model.preset": "advanced"})
    assert memory.needed(bench.compile_step(config)).temp <= mib * 2**20
