"""A small learnable data set and configuration that many tests share."""

import numpy as np

from configs import default
from tqa_jax import records, schema

SCHEMA = schema.Schema(
    modalities=(
        schema.Modality("visual", 6, "none", "1"),
        schema.Modality("audio", 5, "none", "1"),
        schema.Modality("sync", 2, "none", "1"),
    ),
    tasks=(
        schema.Task("lip_sync"),
        schema.Task("audio_quality"),
        schema.Task("overall"),
    ),
)


def make_clip(number: int, source: str, rng: np.random.Generator) -> records.Clip:
    """A clip whose labels are functions of its features' means."""
    frames = int(rng.integers(5, 11))
    quality = rng.uniform(0, 1, 2)
    features = {
        name: rng.normal(size=(frames, width)).astype(np.float32)
        for name, width in SCHEMA.widths.items()
    }
    features["visual"][:, 0] += 4 * quality[0]
    features["audio"][:, 1] += 4 * quality[1]
    mask = {name: np.ones(frames, bool) for name in features}
    mask["visual"][: int(rng.integers(0, 3))] = False
    if number % 7 == 3:
        mask["sync"][:] = False
    labels = 1 + 4 * np.array([quality[0], quality[1], quality.mean()])
    if number % 5 == 2:
        labels[1] = np.nan
    return records.Clip(f"clip{number}", source, features, mask, labels.astype("f4"))


def write(path, *, clips: int = 60, seed: int = 0, test_label: float | None = None):
    """Writes the data set; sources of 3 clips, a fifth validation, a fifth test.

    Args:
        path: folder to make.
        clips: number of clips.
        seed: of features and labels.
        test_label: replaces every label of the test split.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(clips):
        source = number // 3
        split = {3: "validation", 4: "test"}.get(source % 5, "train")
        clip = make_clip(number, f"s{source}", rng)
        if split == "test" and test_label is not None:
            clip.labels[:] = test_label
        pairs.append((split, clip))
    return records.write_dataset(
        path,
        pairs,
        name="small",
        schema=SCHEMA,
        provenance={"kind": "degradation", "description": "random numbers"},
        dtype="float32",
    )


def config(**changes):
    """The default configuration at a size that trains in seconds."""
    found = default.get_config()
    flat = {
        "data.max_frames": 8,
        "model.width": 8,
        "model.depth": 1,
        "model.temporal_heads": 2,
        "model.fusion_layers": 1,
        "model.fusion_heads": 2,
        "model.fusion_ffn": 16,
        "model.head_hidden": (8,),
        "model.dropout": 0.1,
        "model.temporal_dropout": 0.0,
        "model.fusion_dropout": 0.0,
        "model.head_dropout": 0.0,
        "model.modality_dropout": 0.0,
        "optim.learning_rate": 1e-2,
        "optim.warmup_steps": 2,
        "train.epochs": 4,
        "train.batch_size": 8,
        "train.checkpoint_every": 3,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    found.update_from_flattened_dict(flat)
    return found
