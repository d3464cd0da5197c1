"""How clips must be measured for a scorer: as its data set was."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tqa_jax import schema


def options(
    described: Mapping[str, Any],
    *,
    max_seconds: float = 120.0,
    **given: str | Sequence[str] | None,
) -> Any:
    """Returns how clips must be measured: `extract.backends.Options`.

    Args:
        described: `Scorer.schema`.
        max_seconds: longer clips are rejected.
        **given: options of backends by name, see `extract.backends.options`.

    Raises:
        InputError: when the scorer was trained on features that this installation
            does not make: another modality, backend, version or weights.
    """
    from extract import backends, clip

    modalities = [schema.Modality(**modality) for modality in described["modalities"]]
    known = backends.available()
    chosen: dict[str, str] = {}
    missing = []
    for modality in modalities:
        names = modality.backend.split("+")
        free = [name for name in names if name in backends.named_by_option()]
        for name in names:
            if name not in known.get(modality.name, free):
                raise schema.InputError(
                    f"the scorer was trained on {modality.name} of backend {name!r}, "
                    f"which this installation does not make (it has "
                    f"{', '.join(known.get(modality.name, ())) or 'none for it'}); "
                    "give the scorer features: `scorer.load(...).score`"
                )
        if not free:
            chosen[modality.name] = modality.backend
        option = f"{modality.name}_weights"
        weighted = any(hasattr(backends.load(name), "find") for name in names)
        if given.get(option) and not weighted:
            raise schema.InputError(
                f"--{option} is given, but the scorer's {modality.name} features are "
                f"of the backend {modality.backend!r}, which takes none"
            )
        # Weights that no hub has are described by nothing, or as a local file.
        local = "weights: " not in modality.description or (
            "weights: local" in modality.description
        )
        if weighted and local and not given.get(option) and not _packaged(modality):
            missing.append(f"--{option} (checksum {modality.checksum[:12]}…)")
    if missing:
        raise schema.InputError(
            "the scorer was trained on features of weights that only their owner has: "
            f"give them by {', '.join(missing)}"
        )
    dtypes = {backends.dtype(modality.version) for modality in modalities}
    measured = backends.options(
        **{name: chosen.get(name) or None for name in known},
        **given,
        network_dtype=min(dtypes),
        max_seconds=max_seconds,
    )
    needed = {modality.name for modality in modalities}
    measured = dataclasses.replace(
        measured,
        backends={k: v for k, v in measured.backends.items() if k in needed},
    )
    clip.check(measured)
    made = {modality.name: modality for modality in backends.describe(measured)}
    for wanted in modalities:
        if wanted.name not in made:
            raise schema.InputError(
                f"the scorer reads {wanted.name} of {wanted.backend}; give it by "
                f"--{wanted.backend}={wanted.name}:..."
            )
        for field in ("version", "checksum", "width"):
            expected, present = (
                getattr(wanted, field),
                getattr(made[wanted.name], field),
            )
            if expected == present:
                continue
            weighted = any(
                hasattr(backends.load(name), "find")
                for name in wanted.backend.split("+")
            )
            if field == "checksum" and weighted:
                raise schema.InputError(
                    f"the scorer was trained on {wanted.name} of backend "
                    f"{wanted.backend} with other weights (checksum "
                    f"{expected[:12]}…, not {present[:12]}…): give those by "
                    f"--{wanted.name}_weights"
                )
            raise schema.InputError(
                f"the scorer was trained on {wanted.name} of backend {wanted.backend} "
                f"with {field} {expected!r}; this installation has {present!r}: train "
                "again, or install the version that made its data set"
            )
    return measured


def _packaged(modality: schema.Modality) -> bool:
    """Whether the weights of a modality are those in the package."""
    from extract import backends

    modules = [backends.load(name) for name in modality.backend.split("+")]
    return all(
        module.find(None).checksum == checksum
        for module, checksum in zip(modules, modality.checksum.split("+"), strict=True)
        if hasattr(module, "PACKAGED")
    ) and any(hasattr(module, "PACKAGED") for module in modules)
