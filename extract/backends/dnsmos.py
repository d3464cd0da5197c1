"""Audio backend `dnsmos`: what listeners would say of speech, by Microsoft's networks.

DNSMOS P.835 (speech, background, overall), DNSMOS P.808 and PLCMOS hear windows of
9.01 s, one a second, and give each an opinion from 1 to 5. A row takes the line between
the windows in whose middles it lies, so it says nothing of a single word.

Licence: MIT (package `speechmos`, which ships the weights, 2.7 MB). Speed: 0.5 s a
second of clip on one core, 0.3 s for clips of 8 s; it needs `onnxruntime`, no PyTorch.
Blind to what lies above 8 kHz, to what is said and by whom, and to whether the mouth
moves with it; trained on noise suppressors and lost packets of calls, not on synthetic
voices, which it likes.

References:
    Reddy, Gopal, Cutler 2021 (ICASSP 2021 and 2022), "DNSMOS" and "DNSMOS P.835".
    Diener et al. 2023, "PLCMOS". It averages 15 random raters; ours is their mean,
    so that two runs agree, and gives about 0.2 less.
"""

import functools

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float

from extract import backends, sound
from extract.backends import logmel
from extract.networks import weights
from tqa_jax import cli, schema

MODALITY = "audio"
VERSION = "1"
DESCRIPTION = (
    "DNSMOS (speech, background, overall; P.808) and PLCMOS: opinions of 9 s around "
    "each row, 1 to 5"
)
FEATURES = ("sig_mos", "bak_mos", "ovrl_mos", "p808_mos", "plc_mos")
"""Names of the features, in the order of the last axis."""

WINDOW = round(9.01 * sound.SAMPLE_RATE)
_FILES = {
    "dnsmos_models/sig_bak_ovr.onnx": (
        "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
    ),
    "dnsmos_models/model_v8.onnx": (
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91"
    ),
    "plcmos_models/plcmos_v2.onnx": (
        "c0ad3fc64ef9682b4749c0e96636b41c73b4b30bd123b9348feea06a96895286"
    ),
}
_CURVES = (  # from the network's speech, background, overall to opinions
    np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
    np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
    np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
)


def check(setting: backends.Setting) -> None:
    """Checks that the packages are installed, see `extract.backends`."""
    cli.need("onnxruntime")
    _paths()


def make(setting: backends.Setting) -> backends.Measurer:
    """Returns what measures a clip, see `extract.backends`."""

    def finish(clip: backends.Clip) -> tuple[np.ndarray, np.ndarray]:
        heard = sound.heard(clip.present, clip.rows)
        return features(clip.samples, clip.rows), heard

    return backends.Measurer(finish)


def features(
    samples: Float[np.ndarray, " N"], num_rows: int
) -> Float[np.ndarray, "T 5"]:
    """Measures the sound around each row.

    Args:
        samples: mono, 16 kHz, full scale 1; sample 0 is the instant of row 0.
        num_rows: rows to give; before the middle of the first window and after that of
            the last, theirs holds.
    """
    samples = np.clip(samples, -1, 1)
    windows = cut(samples)
    # Of a short clip, repeated, the windows around its rows.
    needed = len(samples) / sound.SAMPLE_RATE - WINDOW / 2 / sound.SAMPLE_RATE
    windows = windows[: max(1, int(np.ceil(needed)) + 1)]
    values = np.array([opinions(window) for window in windows])
    middles = np.arange(len(values)) + WINDOW / 2 / sound.SAMPLE_RATE
    rows = np.arange(num_rows) / schema.FPS
    columns = [np.interp(rows, middles, column) for column in values.T]
    return np.stack(columns, axis=-1).astype(np.float32)


def cut(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "W 144160"]:
    """Cuts sound into the package's windows: one a second, short sound doubled."""
    while len(samples) < WINDOW:
        samples = np.concatenate([samples, samples])
    count = int(len(samples) // sound.SAMPLE_RATE - 9.01) + 1
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)
    return windows[:: sound.SAMPLE_RATE][:count]


def opinions(window: Float[np.ndarray, " 144160"]) -> list[float]:
    """Returns `FEATURES` of one window."""
    speech, call, loss = _sessions()
    window = window.astype(np.float32)
    raw = speech.run(None, {"input_1": window[None]})[0][0]
    p808 = call.run(None, {"input_1": _mel(window[:-160])[None]})[0][0, 0]
    spectrum = {"degraded_audio": _log_power(window)[None, None]}
    rater = {"rater_embed": np.zeros((1, 64), np.float32)}
    plc = loss.run(None, spectrum | rater)[0]
    curved = [float(curve(x)) for curve, x in zip(_CURVES, raw, strict=True)]
    return [*curved, float(p808), float(plc)]


def _paths() -> list[str]:
    return [
        str(weights.packaged("speechmos", name, digest))
        for name, digest in _FILES.items()
    ]


@functools.cache
def _sessions() -> list:
    """Loads the networks once a process, each on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in _paths()
    ]


def _mel(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "F 120"]:
    """Returns what P.808 sees: 120 mel bands of 20 ms, dB below the loudest."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 160), 321)[::160]
    shape = scipy.signal.get_window("hann", 321)
    power = np.abs(scipy.fft.rfft(windows * shape, axis=-1)) ** 2
    mel = logmel.decibel(power @ logmel.mel_filters(120, 321).T)
    return ((np.maximum(mel - mel.max(), -80) + 40) / 40).astype(np.float32)


def _log_power(samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "F 257"]:
    """Returns what PLCMOS sees: log power of 32 ms, 120 dB below the least for none."""
    count = -(-(len(samples) + 256) // 256)
    padded = np.pad(samples, (256, (count + 1) * 256 - 256 - len(samples)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 512)[::256]
    shape = scipy.signal.get_window("hamming", 512)
    power = np.abs(scipy.fft.rfft(windows * shape, axis=-1)) ** 2
    if not power.any():
        return np.full(power.shape, -8 * np.log(10) / 20, np.float32)
    least = np.log(power[power > 0].min()) - 12 * np.log(10)
    log = np.log(power, out=np.full_like(power, least), where=power > 0)
    return (log / 20).astype(np.float32)
