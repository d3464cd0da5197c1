"""Keys and shapes of a state dict: what a network has, and what is wrong with one.

The one thing to know: a layout gives each key a shape of numbers and names of sizes,
as `("3 width", "width")`. Sizes are read from the arrays, each as most of them have it,
so that one wrong array is the one that is reported.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tqa_jax import schema

Layout = dict[str, tuple[int | str, ...]]

MODALITIES = ("visual", "audio", "keypoint", "au")
TASKS = tuple(task.name for task in schema.TASKS)

_LISTED = 5  # Of each kind of problem, in a message.


class Block(NamedTuple):
    """What the parts of a transformer block are called."""

    attention: str = "self_attn"
    expand: str = "linear1"
    contract: str = "linear2"


def dense(key: str, outputs: int | str, inputs: int | str) -> Layout:
    """Returns the entries of a linear layer."""
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def norm(key: str, width: int | str) -> Layout:
    """Returns the entries of a layer norm."""
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def block(key: str, ffn: str, names: Block = Block()) -> Layout:  # noqa: B008
    """Returns the entries of a transformer block; `ffn` is its inner size."""
    attention = f"{key}.{names.attention}"
    return {
        f"{attention}.in_proj_weight": ("3 width", "width"),
        f"{attention}.in_proj_bias": ("3 width",),
        **dense(f"{attention}.out_proj", "width", "width"),
        **norm(f"{key}.norm1", "width"),
        **norm(f"{key}.norm2", "width"),
        **dense(f"{key}.{names.expand}", ffn, "width"),
        **dense(f"{key}.{names.contract}", "width", ffn),
    }


def adaptive(keys: Iterable[str]) -> Layout:
    """Returns the entries of the projections that were made for other widths."""
    found = {}
    for key in keys:
        match = _ADAPTIVE.fullmatch(key)
        if match:
            modality, actual = match["modality"], int(match["actual"])
            found |= dense(key.rpartition(".")[0], modality, actual)
    return found


_ADAPTIVE = re.compile(
    rf"_adaptive_proj\.(?P<modality>{'|'.join(MODALITIES)})"
    r"_proj_(?P<actual>\d{1,9})_to_\d{1,9}\.(weight|bias)"
)


def projections(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Returns kernel and bias of each such projection, by modality and width."""
    found = collections.defaultdict(dict)
    for key in arrays:
        match = _ADAPTIVE.fullmatch(key)
        if match and key.endswith(".weight"):
            bias = arrays[f"{key.removesuffix('weight')}bias"]
            found[match["modality"]][int(match["actual"])] = arrays[key].T, bias
    return dict(found)


def residuals(arrays: Mapping[str, np.ndarray], layout: Layout) -> Layout:
    """Returns the layers beside encoders: of each whose input is not as wide as it.

    Args:
        arrays: of the state dict.
        layout: of the rest, which tells the widths.
    """
    sizes = _sizes(arrays, layout)
    found = {}
    for name in MODALITIES:
        layer = dense(f"{name}_encoder.residual_proj", "width", name)
        if (
            sizes[name] != sizes.get("width")
            if name in sizes
            else layer.keys() <= arrays.keys()
        ):
            found |= layer
    return found


def indices(keys: Iterable[str], pattern: str) -> list[int]:
    """Returns the numbers that a pattern's group finds at the start of keys."""
    matches = [re.match(pattern, key) for key in keys]
    return sorted({int(match[1]) for match in matches if match})


def read(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the entries as float arrays of 32 bits at least.

    Raises:
        InputError: for an entry that is no array of finite numbers.
    """
    if "model_state_dict" in state_dict:
        raise schema.InputError(
            "this is a whole checkpoint; pass its entry 'model_state_dict'"
        )
    found = {}
    for key, value in state_dict.items():
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise schema.InputError(f"{key} cannot be read: {error}") from error
        if not (
            jnp.issubdtype(array.dtype, jnp.floating)
            or jnp.issubdtype(array.dtype, jnp.integer)
        ):
            raise schema.InputError(f"{key} holds {array.dtype}; expected numbers")
        wide = array.dtype == np.float64
        found[str(key)] = array.astype(np.float64 if wide else np.float32)
        if not np.isfinite(found[str(key)]).all():
            raise schema.InputError(f"{key} holds NaN or infinity; expected numbers")
    return found


def check(
    arrays: Mapping[str, np.ndarray],
    layout: Layout,
    *optional: Layout,
    preset: str,
) -> dict[str, int]:
    """Compares a state dict with a layout.

    Args:
        arrays: see `read`.
        layout: of what must be there.
        *optional: of what is there wholly or not at all.
        preset: for the message.

    Returns:
        Each size by its name.

    Raises:
        InputError: lists keys that are missing, unknown or of another shape.
    """
    layout = dict(layout)
    for group in optional:
        if group.keys() & arrays.keys():
            layout |= group
    sizes = _sizes(arrays, layout)
    wanted = {key: _shape(shape, sizes) for key, shape in layout.items()}
    problems = {
        "missing": sorted(layout.keys() - arrays.keys()),
        "unknown": sorted(arrays.keys() - layout.keys()),
        "of another shape": [
            f"{key} is {_text(arrays[key].shape)}, expected {_text(shape)}"
            for key, shape in wanted.items()
            if key in arrays and arrays[key].shape != shape
        ],
    }
    said = [_list(kind, found) for kind, found in problems.items() if found]
    if said:
        raise schema.InputError(
            f"the state dict is not one of preset {preset!r}: {'; '.join(said)}; "
            "use the preset of the network that wrote it, and its whole state dict"
        )
    return sizes


def _sizes(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, int]:
    votes = collections.defaultdict(collections.Counter)
    for key, shape in layout.items():
        if key in arrays and arrays[key].ndim == len(shape):
            for size, name in zip(arrays[key].shape, shape, strict=True):
                if isinstance(name, str) and " " not in name:
                    votes[name][size] += 1
    return {name: counts.most_common(1)[0][0] for name, counts in votes.items()}


def _shape(
    shape: Sequence[int | str], sizes: Mapping[str, int]
) -> tuple[int | str, ...]:
    """Puts in sizes; one that no array tells stays a name."""

    def size(item: int | str) -> int | str:
        if isinstance(item, int):
            return item
        times, _, name = item.rpartition(" ")
        return int(times or 1) * sizes[name] if name in sizes else item

    return tuple(size(item) for item in shape)


def _text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _list(kind: str, found: Sequence[str]) -> str:
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{len(found)} {kind}: {', '.join(found[:_LISTED])}{more}"


def pick_heads(given: int | None, sizes: Mapping[str, int], layers: int) -> int:
    """Returns the number of attention heads of the transformer over modalities.

    It is in no shape. The older system's two configurations have 8 heads, and 16 at
    width 512 with 6 layers.
    """
    default = 16 if (sizes["width"], layers) == (512, 6) else 8
    return check_heads("heads", default if given is None else given, sizes["width"])


def check_heads(name: str, heads: int, width: int) -> int:
    """Returns `heads`.

    Raises:
        InputError: where they don't divide the width.
    """
    if heads < 1 or width % heads:
        raise schema.InputError(
            f"{name} is {heads}; expected a divisor of the width, {width}"
        )
    return heads
