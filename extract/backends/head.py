"""Sync backend `head`: how far the sound is from the mouth, learned from one's clips.

The head says where mouth and sound fit best *relative to the clips that it was trained
on*. A delay that all of them share is its zero, so train it on clips that are in sync
for the most part; `extract.train_sync` makes the file. The packaged one was trained on
real clips of many people.

A clip's lips and jaw, seen in the frame of its own head, and its log-mel spectrum are
freed of what changes slower than a second, and two linear maps take them to where they
correlate (canonical correlation analysis, Hotelling 1936). A window of 4 s around each
row is then compared with the sound at every lag. NumPy and SciPy are enough.
"""

import dataclasses
import pathlib

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from extract import backends, sound
from extract.backends import _sync, correlation, logmel
from extract.networks import tensors, weights
from tqa_jax import output, schema

MODALITY = "sync"
VERSION = "1"
DEFAULT = True
FEATURES = correlation.FEATURES
"""Names of the features, in the order of the last axis."""
DESCRIPTION = (
    "best correlation of learned views of mouth and sound (-1 to 1), how far it stands "
    "out, its lag in frames (positive: audio late) and 1 where there was anything to "
    "compare"
)
WINDOW = 101  # rows

PACKAGED = pathlib.Path(__file__).parent.with_name("networks") / "sync_head.npz"
"""Head of the package; `experiments.pretrained` says what it was trained on."""

_KIND = "tqa_jax sync head"
_SLOW = 1.0  # seconds: standard deviation of the moving average that is taken out
# Mesh points. The skull does not move with the mouth: eyes, nose, temples, forehead.
SKULL = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 98, 327, 10, 127, 356, 234, 454)
# Lips (outer, inner) and jaw: points with their mirror images, then the midline.
_PAIRS = (
    *((61, 291), (146, 375), (91, 321), (181, 405), (84, 314)),
    *((185, 409), (40, 270), (39, 269), (37, 267)),
    *((78, 308), (95, 324), (88, 318), (178, 402), (87, 317)),
    *((191, 415), (80, 310), (81, 311), (82, 312)),
    *((148, 377), (176, 400)),
)
_MIDLINE = (0, 13, 14, 17, 152, 199, 200)
_MOUTH_ROWS = (-2, -1, 0, 1, 2)  # beside each row
_BANDS = 40
_SPAN = 640  # samples, 40 ms
_RANGE = 70.0  # dB below the loudest band; silence is not fathomed further
_STEPS = 4  # spectra a row, 100 a second
_SOUND_STEPS = (-12, -8, -4, 0, 4, 8, 12)  # spectra beside each row's own

MOUTH_WIDTH = len(_MOUTH_ROWS) * (3 * len(_PAIRS) + 2 * len(_MIDLINE))
SOUND_WIDTH = len(_SOUND_STEPS) * _BANDS


@dataclasses.dataclass(frozen=True)
class Head:
    """Maps to where mouth and sound correlate: (values - mean) @ map.

    Attributes:
        mouth_mean: (MOUTH_WIDTH,)
        mouth_map: (MOUTH_WIDTH, C), each component weighed by its correlation.
        sound_mean: (SOUND_WIDTH,)
        sound_map: (SOUND_WIDTH, C)
        num_clips: clips that it was trained on.
        seconds: their length.
    """

    mouth_mean: Float[np.ndarray, " M"]
    mouth_map: Float[np.ndarray, "M C"]
    sound_mean: Float[np.ndarray, " S"]
    sound_map: Float[np.ndarray, "S C"]
    num_clips: int
    seconds: float


def find(given: str | None) -> weights.Found:
    """Finds a trained head, the packaged one by default; see `extract.backends`.

    Raises:
        schema.InputError: there is none, or it is no head.
    """
    path = pathlib.Path(given or PACKAGED)
    load(path)
    origin = "" if given else f"packaged {path.name}"
    return weights.Found(path, {}, {}, weights.sha256(path), origin)


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""
    head = load(setting.weights.file)
    return backends.Measurer(
        lambda clip: features(
            clip.points, clip.aspect, clip.samples, clip.present, head
        )
    )


def features(
    points: Float[np.ndarray, "T 478 3"],
    aspect: float,
    samples: Float[np.ndarray, " N"],
    present: Bool[np.ndarray, " N"],
    head: Head,
) -> tuple[Float[np.ndarray, "T 4"], Bool[np.ndarray, " T"]]:
    """Searches the lag between mouth and sound around each row.

    Args:
        points: landmarks in picture widths and heights, NaN without a face.
        aspect: picture width over height.
        samples: mono, 16 kHz; sample 0 is the instant of row 0.
        present: where the file has sound.
        head: from `load`.

    Returns:
        `FEATURES` and the mask, see `_sync.best_lags`.
    """
    num_rows = len(points)
    seen = (mouth(points, aspect) - head.mouth_mean) @ head.mouth_map
    heard = (speech(samples, present, num_rows) - head.sound_mean) @ head.sound_map
    level = correlation.loudness(samples, present, num_rows)
    starts, window = _sync.windows(num_rows, WINDOW, np.arange(num_rows))
    rows = starts[:, None] + np.arange(window)
    return _sync.best_lags(
        lambda: _sync.correlate(seen, heard, starts, window),
        starts,
        window,
        face=np.isfinite(seen[:, 0]),
        heard=np.isfinite(heard[:, 0]),
        opening=correlation.openings(points, aspect)[0],
        level=level,
        loudest=np.nan_to_num(level, nan=-np.inf)[rows].max(axis=-1),
    )


def mouth(
    points: Float[np.ndarray, "T 478 3"], aspect: float
) -> Float[np.ndarray, "T M"]:
    """Describes the mouth's movement around each row.

    Lips and jaw are seen in the frame of the skull, left and right averaged, freed of
    slow change and scaled to unit spread over the clip: what the head does and how the
    face is built are gone. Rows without a face are NaN; their neighbours see a straight
    line across them.
    """
    known = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    result = np.full((len(points), MOUTH_WIDTH), np.nan)
    if not len(known):
        return result
    shown = placed(points[known] * np.array([aspect, 1.0, aspect]))[0]
    left, right = shown[:, [a for a, _ in _PAIRS]], shown[:, [b for _, b in _PAIRS]]
    shape = np.concatenate(
        [
            right[..., 0] - left[..., 0],
            (right[..., 1:] + left[..., 1:]).reshape(len(known), -1),
            shown[:, _MIDLINE, 1:].reshape(len(known), -1),
        ],
        axis=-1,
    )
    rows = np.arange(len(points))
    shape = np.stack([np.interp(rows, known, column) for column in shape.T], axis=-1)
    moving = _without_slow(shape, schema.FPS)
    moving /= moving.std(axis=0) + 1e-6
    result[known] = _beside(moving, known, _MOUTH_ROWS)
    return result


def speech(
    samples: Float[np.ndarray, " N"], present: Bool[np.ndarray, " N"], num_rows: int
) -> Float[np.ndarray, "T S"]:
    """Describes the sound around each row: 40 mel bands at seven instants, 40 ms apart.

    Decibels, freed of each band's mean and of slow change (a microphone's colour and
    gain are gone) and scaled to unit spread over the clip. Rows without sound are NaN.
    """
    heard = _windows(present.astype(np.float32), num_rows).mean(axis=-1) >= 0.5
    result = np.full((num_rows, SOUND_WIDTH), np.nan)
    if not heard.any():
        return result
    power = logmel.spectrum(_windows(samples, num_rows))
    mel = logmel.decibel(power @ logmel.mel_filters(_BANDS, _SPAN).T)
    mel = np.maximum(mel, mel.max() - _RANGE)
    mel = np.where(heard[:, None], mel - mel[heard].mean(axis=0), 0.0)
    moving = _without_slow(mel, _STEPS * schema.FPS)
    moving /= moving[heard].std() + 1e-6
    known = np.flatnonzero(heard[::_STEPS])
    result[known] = _beside(moving, _STEPS * known, _SOUND_STEPS)
    return result


def save(path: str | pathlib.Path, head: Head) -> None:
    """Writes a head; equal heads give equal bytes.

    Raises:
        schema.InputError: the file cannot be written.
    """
    output.write_arrays(
        pathlib.Path(path), kind=_KIND, version=VERSION, **dataclasses.asdict(head)
    )


def load(path: str | pathlib.Path) -> Head:
    """Reads a head that `save` wrote.

    Raises:
        schema.InputError: there is none, or it is not one of this version.
    """
    advice = "`python -m extract.train_sync` makes one"
    path = pathlib.Path(path)
    if not path.exists():
        raise schema.InputError(f"no sync head at {path}; {advice}")
    try:
        arrays = output.read_arrays(path)
    except schema.InputError as error:
        raise schema.InputError(
            f"{path} is not a sync head or is damaged; {advice}"
        ) from error
    kind, version = (str(arrays.pop(name, "")) for name in ("kind", "version"))
    if (kind, version) != (_KIND, VERSION):
        raise schema.InputError(
            f"{path} is {kind!r} of version {version!r}; expected {_KIND!r} of version "
            f"{VERSION!r}: {advice}"
        )
    take = tensors.Tensors(arrays, f"sync head's {path}")
    components = arrays.get("mouth_map", np.zeros(0)).shape[-1]
    return Head(
        take("mouth_mean", MOUTH_WIDTH),
        take("mouth_map", MOUTH_WIDTH, components),
        take("sound_mean", SOUND_WIDTH),
        take("sound_map", SOUND_WIDTH, components),
        int(take("num_clips")),
        float(take("seconds")),
    )


def placed(
    points: Float[np.ndarray, "T P 3"],
) -> tuple[
    Float[np.ndarray, "T P 3"], Float[np.ndarray, "T 3 3"], Float[np.ndarray, " T"]
]:
    """Turns, moves and scales each row so that its skull lies on the clip's median.

    The similarity of least squares (Umeyama 1991); the median skull has unit size.

    Returns:
        The points; the turn of each row, which is applied from the right; and the size
        of each row's skull.
    """
    skull = points[:, SKULL]
    target = np.median(skull, axis=0)
    target = target - target.mean(axis=0)
    target /= max(target.std(), 1e-9)
    centre = skull.mean(axis=1, keepdims=True)
    skull = skull - centre
    u, singular, v = np.linalg.svd(np.einsum("tpi,pj->tij", skull, target))
    signs = np.ones_like(singular)
    signs[:, 2] = np.where(np.linalg.det(u @ v) < 0, -1.0, 1.0)  # no reflection
    rotation = np.einsum("tij,tj,tjk->tik", u, signs, v)
    spread = np.maximum((skull**2).sum(axis=(1, 2)), 1e-12)
    scale = (singular * signs).sum(axis=-1) / spread
    return (points - centre) @ rotation * scale[:, None, None], rotation, 1 / scale


def _windows(values: Float[np.ndarray, " N"], num_rows: int) -> np.ndarray:
    """Returns `_SPAN` values around each of `_STEPS` instants a row."""
    hop = round(sound.SAMPLE_RATE / schema.FPS) // _STEPS
    padded = np.pad(values, (_SPAN // 2, _SPAN))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SPAN)
    return windows[::hop][: _STEPS * num_rows]


def _without_slow(values: Float[np.ndarray, "T D"], rate: float) -> np.ndarray:
    """Subtracts a moving average."""
    return values - scipy.ndimage.gaussian_filter1d(
        values, _SLOW * rate, axis=0, mode="nearest"
    )


def _beside(values: np.ndarray, at: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Joins what lies so many steps beside each place; ends are repeated."""
    near = [values[np.clip(at + step, 0, len(values) - 1)] for step in steps]
    return np.concatenate(near, axis=-1)
