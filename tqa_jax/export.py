"""A finished run as one file that scores clips: `python -m tqa_jax.export`.

`npz` is for `scorer.py`, which needs NumPy only and always computes in float32;
`stablehlo` is the compiled-from network itself, for a server that has JAX or another
runtime of StableHLO. Exit status: 0 when the file was written, 2 when it was not.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import pathlib
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tqa_jax import batch, cli, output, preprocess, run, schema, scorer

DTYPES = ("float32", "float16", "bfloat16")
FORMATS = ("npz", "stablehlo")
PLATFORMS = ("cpu", "cuda", "tpu")

_TRIED_CLIPS = 32


def describe(
    found: run.Run, *, dtype: str = "float32", reference: Sequence[str] = ()
) -> dict[str, Any]:
    """Says what a scorer is, as JSON.

    Args:
        found: the run.
        dtype: how weights are stored, one of `DTYPES`.
        reference: modalities with statistics of the training clips.

    Returns:
        What `scorer.contents` and the scorer itself go by.
    """
    options = dict(found.model.options)
    options["embedder_hidden"] = dict(options["embedder_hidden"])
    options["head_hidden"] = list(options["head_hidden"])
    return {
        "format": scorer.FORMAT,
        "version": scorer.VERSION,
        "made_by": f"tqa_jax {importlib.metadata.version('tqa_jax')}",
        "schema": found.schema.to_json(),
        "components": {
            name: transform.components.shape[1]
            for name, transform in found.transforms.items()
        },
        "max_frames": found.config.data.max_frames,
        "members": len(found.members),
        "storage": dtype,
        "options": options,
        "reference": list(reference),
        "confidence": found.results.get("confidence", {}),
    }


def collect(
    found: run.Run, reference: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Gathers every array of a scorer, float32, by name.

    Args:
        found: the run.
        reference: `<modality>/mean`, `/scale` and `/limit` of the training clips.
    """
    arrays = {}
    for name, transform in found.transforms.items():
        for field in ("median", "low", "high", "mean", "scale", "components"):
            arrays[f"transforms/{name}/{field}"] = getattr(transform, field)
    for name, array in (reference or {}).items():
        arrays[f"reference/{name}"] = array
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found.members)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
        arrays["params/" + "/".join(key.key for key in path)] = leaf
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def store(array: np.ndarray, name: str, code: str) -> np.ndarray:
    """Converts an array to how it is stored.

    Args:
        array: float32.
        name: for the message.
        code: NumPy type code, from `scorer.contents`; `<u2` holds bfloat16.

    Raises:
        InputError: when a number does not fit.
    """
    if code == "<f4":
        return array
    with np.errstate(over="ignore"):
        small = array.astype(np.float16 if code == "<f2" else jnp.bfloat16)
    if not np.isfinite(small).all():
        largest = float(np.abs(array).max())
        raise schema.InputError(
            f"{name} holds {largest:g}, which {small.dtype} cannot; use --dtype=float32"
        )
    return small if code == "<f2" else small.view(np.uint16)


def pack(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Makes the bytes of a scorer file; equal input gives equal bytes.

    Args:
        description: see `describe`.
        arrays: see `collect`.

    Raises:
        InputError: when a number does not fit into the type it is to be stored as.
    """
    wanted = scorer.contents(description)
    for name in sorted(wanted.keys() | arrays.keys()):
        got = arrays[name].shape if name in arrays else "nothing"
        expected = wanted[name][1] if name in wanted else "nothing"
        if got != expected:
            raise schema.InputError(f"{name} has shape {got}; expected {expected}")
    text = json.dumps(description, allow_nan=False).encode()
    members = {"description": _npy(np.frombuffer(text, np.uint8))}
    for name in sorted(wanted):
        members[name] = _npy(store(arrays[name], name, wanted[name][0]))
    digest = hashlib.sha256(members["description"])
    for name in sorted(f"{name}.npy" for name in wanted):
        digest.update(members[name.removesuffix(".npy")])
    members["sha256"] = _npy(np.frombuffer(digest.digest(), np.uint8))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data)
    return packed.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    array = np.asarray(array, order="C")
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def stablehlo(found: run.Run) -> bytes:
    """Lowers a run to StableHLO for CPU, CUDA and TPU, serialised by `jax.export`.

    The function takes raw features {modality: float32 (B, T, D)} and masks {modality:
    bool (B, T)}, for any B and any T up to `max_frames`, and returns scores (B, K):
    preprocessing is inside, windows of longer clips are the caller's. It is read back
    with `jax.export.deserialize(...).call(features, masks)`.

    Args:
        found: the run.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found.members)

    def score(features, masks):
        rows = {
            name: jnp.where(
                masks[name][..., None], preprocess.apply(transform, features[name]), 0
            )
            for name, transform in found.transforms.items()
        }
        clips = batch.Batch(rows, masks, None, None)
        each = jax.vmap(lambda params: found.model.apply(params, clips))(stacked)
        return each.mean(axis=0)

    clips, frames = jax.export.symbolic_shape(
        "clips, frames", constraints=[f"frames <= {found.config.data.max_frames}"]
    )
    widths = found.schema.widths
    features = {
        name: jax.ShapeDtypeStruct((clips, frames, width), np.float32)
        for name, width in widths.items()
    }
    masks = {name: jax.ShapeDtypeStruct((clips, frames), bool) for name in widths}
    lowered = jax.export.export(jax.jit(score), platforms=PLATFORMS)(features, masks)
    return bytes(lowered.serialize())


def random_clips(
    found: run.Run, clips: int, *, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Draws raw features in the range of the training features.

    After preprocessing, every feature is normal with mean 0 and variance 1, half of
    it between clips and half between frames.

    Args:
        found: the run.
        clips: how many, each of `max_frames` frames.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(clips):
        features = {}
        for name, transform in found.transforms.items():
            size = found.config.data.max_frames, transform.width
            z = (rng.normal(size=size[1]) + rng.normal(size=size)) / np.sqrt(2)
            if transform.components.shape[1]:
                # The components are orthogonal and of one length.
                length = np.square(transform.components).sum(axis=0).mean()
                z = z @ transform.components.T / max(length, 1e-12)
            deviation = np.where(transform.scale, 1 / (transform.scale + 1e-30), 0)
            features[name] = (transform.mean + z * deviation).astype(np.float32)
        drawn.append(features)
    return drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    workdir: pathlib.Path
    """Folder of the finished run."""
    out: pathlib.Path
    """File to write; replaced if there."""
    dtype: Literal[DTYPES] = "float32"
    """How npz stores weights; float16 and bfloat16 take half the bytes."""
    format: Literal[FORMATS] = "npz"
    """npz for scorer.py; stablehlo for jax.export, with a .json that describes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return cli.main(_run, Options, arguments)


def _run(options: Options) -> None:
    if options.format == "stablehlo" and options.dtype != "float32":
        raise schema.InputError("--format=stablehlo stores float32; --dtype is for npz")
    found = run.Run.load(options.workdir)
    write = _write_npz if options.format == "npz" else _write_stablehlo
    print(write(found, options))


def _write_npz(found: run.Run, options: Options) -> str:
    out = options.out
    reference = _reference(options.workdir)
    names = dict.fromkeys(name.split("/")[0] for name in reference)
    description = describe(found, dtype=options.dtype, reference=list(names))
    arrays = collect(found, reference)
    data = pack(description, arrays)
    with tempfile.TemporaryDirectory() as folder:
        tried = pathlib.Path(folder) / "scorer.npz"
        tried.write_bytes(data)
        start = time.perf_counter()
        stored = scorer.load(tried)
        seconds = time.perf_counter() - start
    output.write(out, data)
    said = _size(out, seconds, found)
    if options.dtype != "float32":
        clips = random_clips(found, _TRIED_CLIPS)
        exact = scorer.Scorer(description, arrays).score_batch(clips)
        error = max(
            abs(one[task] - other[task])
            for one, other in zip(exact, stored.score_batch(clips), strict=True)
            for task in one
        )
        said += (
            f"\n{options.dtype} moves a score by at most {error:.2g} of float32's, on "
            f"{_TRIED_CLIPS} clips of random features in the range of training"
        )
    return said


def _write_stablehlo(found: run.Run, options: Options) -> str:
    out = options.out
    data = stablehlo(found)
    output.write(out, data)
    described = describe(found) | {
        "format": "tqa_jax.stablehlo",
        "sha256": hashlib.sha256(data).hexdigest(),
        "platforms": PLATFORMS,
        "inputs": "features {name: float32 (B, T, D)}, masks {name: bool (B, T)}",
        "output": "scores float32 (B, tasks)",
    }
    text = json.dumps(described, indent=1, allow_nan=False)
    output.write(out.with_name(out.name + ".json"), text.encode())
    start = time.perf_counter()
    jax.export.deserialize(bytearray(out.read_bytes()))
    return _size(out, time.perf_counter() - start, found)


def _size(out: pathlib.Path, seconds: float, found: run.Run) -> str:
    return (
        f"{out}: {out.stat().st_size / 1e6:.2f} MB, loads in {1000 * seconds:.0f} ms; "
        f"members: {len(found.members)}, tasks: {', '.join(found.schema.task_names)}"
    )


def _reference(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    path = workdir / "reference.npz"
    return output.read_arrays(path) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
