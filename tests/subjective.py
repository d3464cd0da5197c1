"""What tests of studies with raters share: tiny clips and options."""

import csv
import pathlib

import numpy as np

from experiments.subjective import make
from extract import encode
from tqa_jax import cli

# Names that mean something else in an address, or look like markup.
NAMES = ("a b#1.mp4", "100%/c&d?e=f.mp4", "ü'<b>\".mp4", "sub/plain.mp4")
FRAMES = 5


def write_clips(folder: pathlib.Path) -> pathlib.Path:
    """Writes a clip of 0.2 seconds under each name."""
    for k, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        pictures = [
            np.full((64, 64, 3), 40 * k + 10 * t, np.uint8) for t in range(FRAMES)
        ]
        samples = 0.05 * np.sin(np.arange(16_000 * FRAMES // 25) * (0.1 + 0.1 * k))
        encode.write(folder / name, pictures, samples)
    return folder


def table(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def options(**given):
    """Options of `make` with their defaults."""
    return cli.parse(make.Options, [f"--{name}={given[name]}" for name in given])
