"""How clips must be measured for a scorer: as its data set was."""

from collections.abc import Mapping
from typing import Any

from tqa_jax import schema


def options(
    described: Mapping[str, Any],
    *,
    openface: str | None = None,
    max_seconds: float = 120.0,
    **weights: str | None,
) -> Any:
    """Returns how clips must be measured: `extract.clip.Options`.

    Args:
        described: `Scorer.schema`.
        openface: folder of OpenFace tables, or None.
        max_seconds: see `extract.clip.Options`.
        **weights: `visual_weights` and so on, likewise.

    Raises:
        InputError: when the scorer was trained on features that this installation
            does not make: another modality, backend, version or landmarker.
    """
    from extract import clip, deep, sync_head

    backends = {one["name"]: one["backend"] for one in described["modalities"]}
    unknown = [name for name in backends if name not in clip.BACKENDS]
    if unknown:
        raise schema.InputError(
            f"the scorer reads {unknown[0]!r}, which no extractor makes "
            f"({', '.join(clip.BACKENDS)}); give it features: `scorer.load(...).score`"
        )
    for name, backend in backends.items():
        if backend not in clip.BACKENDS[name]:
            raise schema.InputError(
                f"the scorer was trained on {name} of backend {backend!r}; this "
                f"installation has {', '.join(clip.BACKENDS[name])}"
            )
    missing = []
    for one in described["modalities"]:
        option, backend = f"{one['name']}_weights", one["backend"]
        takes = backend in deep.KINDS or backend == sync_head.NAME
        if weights.get(option) and not takes:
            raise schema.InputError(
                f"--{option} is given, but the scorer's {one['name']} features are of "
                f"the backend {backend!r}, which takes none"
            )
        own = backend == sync_head.NAME or deep.LOCAL in one.get("description", "")
        if takes and own and not weights.get(option):
            missing.append(f"--{option} (checksum {one['checksum'][:12]}…)")
    if missing:
        raise schema.InputError(
            "the scorer was trained on features of weights that only their owner has: "
            f"give them by {', '.join(missing)}"
        )
    dtypes = {
        deep.dtype(one["version"])
        for one in described["modalities"]
        if one["backend"] in deep.KINDS
    }
    chosen = clip.Options(
        **backends,
        **weights,
        network_dtype=min(dtypes, default="float32"),
        openface=openface,
        max_seconds=max_seconds,
    )
    clip.check(chosen)
    for made in clip.modalities(chosen):
        for wanted in described["modalities"]:
            if wanted["name"] != made.name:
                continue
            for field in ("version", "checksum", "width"):
                found = getattr(made, field)
                takes = made.backend in clip.with_weights(made.name)
                if wanted[field] != found and field == "checksum" and takes:
                    raise schema.InputError(
                        f"the scorer was trained on {made.name} of backend "
                        f"{made.backend} with other weights (checksum "
                        f"{wanted[field][:12]}…, not {found[:12]}…): give those by "
                        f"--{made.name}_weights"
                    )
                if wanted[field] != found:
                    raise schema.InputError(
                        f"the scorer was trained on {made.name} of backend "
                        f"{made.backend} with {field} {wanted[field]!r}; this "
                        f"installation has {found!r}: train again, or install the "
                        "version that made its data set"
                    )
    return chosen
