"""Whether a compiled program fits its device, said before it runs.

The one thing to know: the numbers are the compiler's own. What a program is given and
returns, and its working memory, are fixed when it is compiled, so a run that cannot fit
is refused with what would make it fit, and does not die in its first step.
"""

import dataclasses
import logging
from typing import NamedTuple

import jax

from tqa_jax import machine, schema

_logger = logging.getLogger(__name__)
_NEAR = 0.9  # of the device: what the program does not count has to fit as well
_MARGIN = 1.25  # micro-batches take this much more than their share of a batch


class Needed(NamedTuple):
    """Bytes of a program on each device.

    Attributes:
        resident: arguments and results; what is donated counts once.
        temp: working memory.
    """

    resident: int
    temp: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.resident + self.temp


@dataclasses.dataclass(frozen=True)
class Settings:
    """What memory depends on and a user can change.

    Attributes:
        batch_size: clips of a step.
        accumulation: micro-batches of a step.
        remat: policy of recomputation, or empty.
        dtype: of activations.
        devices: over which the batch is spread.
        data_bytes: of the training windows that lie on each device, 0 if streamed.
    """

    batch_size: int
    accumulation: int
    remat: str
    dtype: str
    devices: int = 1
    data_bytes: int = 0


def needed(compiled: jax.stages.Compiled) -> Needed:
    """Asks a compiled program how much memory it takes on each device."""
    found = compiled.memory_analysis()
    resident = found.argument_size_in_bytes + found.output_size_in_bytes
    return Needed(resident - found.alias_size_in_bytes, found.temp_size_in_bytes)


def available(device: jax.Device) -> int | None:
    """Bytes that programs may use on a device; None where nothing tells.

    Args:
        device: an accelerator's own limit is taken, which for a GPU is the share of its
            memory that `XLA_PYTHON_CLIENT_MEM_FRACTION` gives to JAX. The devices of a
            CPU share what the control group allows or the machine has.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limit = machine.memory()
    return None if limit is None else limit // jax.local_device_count("cpu")


def describe(
    need: Needed, limit: int | None, settings: Settings, *, platform: str
) -> str:
    """Says in one line what a program needs, and what to change if that is much.

    Args:
        need: of the training program.
        limit: from `available`.
        settings: in use; only what is not yet in use is suggested.
        platform: of the device. bfloat16 saves nothing on a CPU, which computes in
            float32.
    """
    text = f"training needs {_gigabytes(need.total)} of memory"
    if limit is None:
        return text
    text += f", device has {_gigabytes(limit)}"
    if need.total <= _NEAR * limit:
        return text
    return f"{text}; try {', '.join(_ideas(need, limit, settings, platform))}"


def _ideas(need: Needed, limit: int, settings: Settings, platform: str) -> list[str]:
    """Settings that would help, as they are written on the command line."""
    ideas = []
    resident = need.resident
    if resident > _NEAR * limit and settings.data_bytes:
        # Half of what is there, so that the split is streamed from its shards.
        ideas.append(f"data.memory_gb={settings.data_bytes / 2**31:.2g}")
        resident -= settings.data_bytes
    clips = settings.batch_size // settings.devices
    finer = [
        number
        for number in range(settings.accumulation + 1, clips + 1)
        if clips % number == 0
    ]
    room = _NEAR * limit - resident
    fits = need.temp <= room
    for number in finer:
        share = _MARGIN * settings.accumulation / number
        fits = need.temp * share <= room
        if fits or number == finer[-1]:
            ideas.append(f"train.accumulation={number}")
            break
    if not fits:
        if not settings.remat:
            ideas.append("model.remat=nothing_saveable")
        if settings.dtype == "float32" and platform != "cpu":
            ideas.append("model.dtype=bfloat16")
    return ideas or ["a smaller data.max_frames or model.width"]


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.3g} GB"


def check(
    compiled: jax.stages.Compiled, device: jax.Device, settings: Settings
) -> None:
    """Logs what a training program needs; refuses one that cannot fit.

    Args:
        compiled: the program, before its first call.
        device: one of those that it runs on.
        settings: in use.

    Raises:
        InputError: when an accelerator has less memory than the program needs. A CPU
            may swap, so there it is a warning.
    """
    need, limit = needed(compiled), available(device)
    text = describe(need, limit, settings, platform=device.platform)
    if limit is not None and need.total > limit and device.platform != "cpu":
        raise schema.InputError(text)
    near = limit is not None and need.total > _NEAR * limit
    _logger.log(logging.WARNING if near else logging.INFO, "%s", text)
