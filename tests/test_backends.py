"""Every file of `extract.backends` keeps the contract; a new one needs no other."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from extract import backends, clip, run
from extract.backends import arrays
from tests import media
from tqa_jax import data, export, records, schema, score

ENERGY = '''"""Energy of the sound around each row."""

import numpy as np

from extract import backends

MODALITY = "energy"
VERSION = "1"
DESCRIPTION = "level of each row's sound, dB"
FEATURES = ("level_db",)


def make(setting):
    def finish(clip):
        power = np.square(clip.samples).reshape(clip.rows, -1).mean(axis=-1)
        heard = clip.present.reshape(clip.rows, -1).all(axis=-1)
        return 10 * np.log10(power[:, None] + 1e-10).astype(np.float32), heard

    return backends.Measurer(finish)
'''
NETWORK = '''"""Brightness of each row in four stripes, from a network of one layer."""

import numpy as np

from extract import backends

MODALITY = "stripes"
VERSION = "2"
DESCRIPTION = "brightness in four stripes"
FEATURES = ("first", "second", "third", "fourth")


def make(setting):
    rows = []

    def frame(pixels, points):
        rows.append(pixels.mean(axis=(1, 2))[:8])

    return backends.Measurer(
        lambda clip: ({"rows": np.stack(rows)}, np.ones(clip.rows, bool)), frame
    )


def network(found, dtype):
    import jax.numpy as jnp

    kernel = jnp.kron(jnp.eye(4), jnp.ones((2, 1)))
    return backends.Network(
        inputs=lambda pending: {"rows": (pending["rows"],)},
        run={"rows": lambda rows: jnp.asarray(rows, dtype) @ kernel},
        finish=lambda pending, mask, outputs: (outputs["rows"], mask),
    )
'''


@pytest.fixture
def dropped(tmp_path, monkeypatch):
    """Adds files to a folder of backends that lies elsewhere on Python's path."""
    folder = tmp_path / "elsewhere" / "extract" / "backends"
    folder.mkdir(parents=True)
    (folder / "energy.py").write_text(ENERGY)
    (folder / "stripes.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")  # worker processes take it over
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            (".reshape(clip.rows, -1).all(", "[640:].reshape(clip.rows - 1, -1).all("),
            r"energy.py gave features \(15, 1\) and a mask \(14,\); expected \(15, 1\)",
        ),
        (
            ("np.float32), heard", "np.float32).repeat(2, axis=-1), heard"),
            r"energy.py gave features \(15, 2\) .* expected \(15, 1\)",
        ),
        (('VERSION = "1"', ""), "energy.py says no VERSION"),
        (("FEATURES = ", "NAMES = "), "energy.py says no FEATURES"),
        (("def make(", "def make(("), "backend energy cannot be imported: SyntaxError"),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_of_it_is_kept(
    dropped, tmp_path, change, message
):
    file = tmp_path / "elsewhere" / "extract" / "backends" / "energy.py"
    file.write_text(ENERGY.replace(*change))
    path = media.face(tmp_path / "a.mp4", 0.6)
    for name in ("energy", "stripes"):
        sys.modules.pop(f"extract.backends.{name}", None)
    backends.load.cache_clear()
    try:
        with pytest.raises(schema.InputError, match=message):
            clip.observe(path, backends.options(energy="energy"))
    finally:
        sys.modules.pop("extract.backends.energy", None)
        backends.load.cache_clear()


@pytest.mark.parametrize("name", backends.names())
def test_each_backend_says_what_the_contract_asks(name):
    module = backends.load(name)
    assert isinstance(module.VERSION, str) and module.VERSION
    assert isinstance(module.DESCRIPTION, str) and "\n" not in module.DESCRIPTION
    assert module.__doc__.splitlines()[0].endswith((".", ":", ","))
    assert callable(module.make)
    if module.MODALITY is None:
        assert module.OPTION.repeats
    else:
        assert module.MODALITY.isidentifier()
    if hasattr(module, "FEATURES"):
        assert len(set(module.FEATURES)) == len(module.FEATURES) > 0
        assert all(getattr(module, "group", str)(name) for name in module.FEATURES)
    else:
        assert callable(module.width)


def test_each_modality_has_at_most_one_default():
    for modality, names in backends.available().items():
        defaults = [n for n in names if getattr(backends.load(n), "DEFAULT", False)]
        assert defaults == names[: len(defaults)] and len(defaults) <= 1, modality


def test_backends_of_a_modality_join_side_by_side(tmp_path):
    path = media.face(tmp_path / "a.mp4", 0.6)
    alone = clip.observe(path, backends.options())
    options = backends.options(action_units="geometry+blendshapes")
    both = clip.observe(path, options)
    described = {m.name: m for m in backends.check(options)}["action_units"]
    assert (described.width, described.backend) == (34, "geometry+blendshapes")
    assert described.version == "1+1" and described.checksum.count("+") == 1
    np.testing.assert_array_equal(
        both.features["action_units"][:, 17:], alone.features["action_units"]
    )
    assert both.features["action_units"].shape == (15, 34)


def test_a_row_that_one_of_two_did_not_measure_is_present_and_partly_nan():
    whole, part = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)
    part[2] = np.nan
    mask = np.array([True, True, False])
    joined = clip.ClipFeatures(
        {"a/x": whole, "a/y": part}, {"a/x": np.ones(3, bool), "a/y": mask}, (), {}
    )
    np.testing.assert_array_equal(joined.frame_mask["a"], True)
    np.testing.assert_array_equal(np.isnan(joined.features["a"]).sum(axis=0), [0, 0, 1])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"audio": "logmel+logmel"}, "--audio=logmel\\+logmel names a backend twice"),
        ({"audio": "logmel+nss"}, "unknown audio backend 'nss'; available: logmel"),
        (
            {"audio": "hubert+wav2vec2", "audio_weights": "x"},
            "hubert and wav2vec2 take weights",
        ),
        ({"visual": "cnn"}, "unknown visual backend 'cnn'; available: nss, clip"),
        ({"visual": "arrays"}, "unknown visual backend 'arrays'"),
        ({"arrays": ["visual:x@25"]}, "'visual' is measured already"),
        ({"arrays": ["mine:/none@25"]}, "no array in /none"),
        ({"arrays": ["mine:/none"]}, "expected NAME:DIR@FPS"),
        ({"arrays": ["mine:/none@0"]}, "expected NAME:DIR@FPS"),
        ({"flavour": "sweet"}, "no backend has an option --flavour"),
        ({"action_units": "openface"}, "--openface=DIR"),
        ({"openface": "/none"}, "choose --action_units=BACKEND of openface"),
        ({"action_units": "openface", "openface": "/none"}, "no folder of OpenFace"),
        ({"max_seconds": 0}, "max_seconds is 0"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
        ({"landmarker": "/none.task"}, "no face landmarker at /none.task"),
        (
            {"visual": "resnet101", "visual_weights": "/none"},
            "visual_weights is '/none'; expected a local",
        ),
        ({"visual_weights": "/none"}, "--visual_weights is given, .*'nss' does not re"),
        ({"sync": "syncnet"}, "syncnet needs weights: download http"),
        ({"network_dtype": "int8"}, "unknown network dtype 'int8'; available: float32"),
        ({"network_dtype": "bfloat16"}, "no backend is a network that computes in it"),
        (
            {"visual": "clip", "network_dtype": "bfloat16"},
            "no backend is a network that computes in it",
        ),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(values, message):
    with pytest.raises(schema.InputError, match=message) as caught:
        clip.check(backends.options(**values))
    assert "\n" not in str(caught.value)


def test_a_users_array_is_brought_to_the_rows_by_lines():
    values = np.outer(np.arange(60, dtype=np.float32), (1, -2))  # 2 s
    features, mask = arrays.resample(values, 30.0, 75)
    at = np.arange(75) * 30 / 25
    np.testing.assert_array_equal(mask, at <= 59.5)
    expected = np.minimum(at, 59)[mask, None] * [1, -2]
    np.testing.assert_allclose(features[mask], expected, rtol=1e-6)
    assert np.isnan(features[~mask]).all() and features.dtype == np.float32


def test_rows_beside_a_number_that_is_none_are_masked():
    values = np.ones((10, 1), np.float32)
    values[4] = np.inf
    _, mask = arrays.resample(values, 25.0, 10)
    np.testing.assert_array_equal(~mask, np.arange(10) == 4)
    _, mask = arrays.resample(values, 50.0, 5)
    np.testing.assert_array_equal(~mask, np.arange(5) == 2)


def _clips(folder: pathlib.Path) -> pathlib.Path:
    """Clips and labels of four sources."""
    folder.mkdir()
    splits = ("train", "train", "validation", "test")
    lines = ["clip,split,overall"]
    for number, split in enumerate(splits):
        media.face(folder / f"{number}.mp4", 1.0, picture=media.talking(number + 1))
        lines.append(f"{number},{split},{1 + number}")
    (folder.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_arrays_become_a_modality_of_the_set(tmp_path, capsys):
    folder = _clips(tmp_path / "clips")
    (tmp_path / "mine").mkdir()
    for number in range(3):  # none of the fourth clip
        rows = np.full((20 + number, 3), number, np.float64)
        np.save(tmp_path / "mine" / f"{number}.npy", rows)
    arguments = [
        f"--clips={folder}",
        f"--labels={tmp_path / 'labels.csv'}",
        f"--out={tmp_path / 'set'}",
        f"--arrays=mood:{tmp_path / 'mine'}@20",
        "--num_workers=1",
    ]
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "no array 3.npy: mood is missing" in printed
    info = schema.load(tmp_path / "set")
    assert info.schema.widths["mood"] == 3
    stored = {
        one.clip: one
        for split in schema.SPLITS
        for one in records.read_split(tmp_path / "set", info, split)
    }
    for number in range(3):
        mask = stored[str(number)].frame_mask["mood"]
        assert (
            mask.sum() == 25 and (stored[str(number)].features["mood"] == number).all()
        )
    assert not stored["3"].frame_mask["mood"].any()
    np.save(tmp_path / "mine" / "0.npy", np.zeros((5, 3)))
    assert run.main(arguments) == 0  # Of the one clip, this modality alone.
    printed = capsys.readouterr().out
    assert "measured 1 clips" in printed and "sync" not in printed
    assert str(tmp_path) not in (tmp_path / "set" / "dataset.json").read_text()


@pytest.mark.slow
def test_dropped_files_go_all_the_way(tmp_path, dropped, capsys):
    folder = _clips(tmp_path / "clips")
    out, workdir = tmp_path / "set", tmp_path / "run"
    command = [f"--clips={folder}", f"--labels={tmp_path / 'labels.csv'}"]
    command += [f"--out={out}", "--energy=energy", "--stripes=stripes"]
    assert run.main(command) == 0
    info = schema.load(out)
    described = {m.name: (m.backend, m.width) for m in info.schema.modalities}
    assert described["energy"] == ("energy", 1)
    assert described["stripes"] == ("stripes", 4)
    stored = next(iter(records.read_split(out, info, "test")))
    assert np.isfinite(stored.features["energy"]).all()
    assert (stored.features["stripes"] > 1).all()  # the network's sums
    assert data.main(["audit", str(out)]) in (0, None)
    assert "stripes" in capsys.readouterr().out
    trained = subprocess.run(
        [sys.executable, "-m", "tqa_jax.main", "--config=configs/smoke.py"]
        + [f"--config.data.path={out}", f"--workdir={workdir}"]
        + ["--config.optim.warmup_steps=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    scorer, result = tmp_path / "scorer.npz", tmp_path / "score.json"
    assert export.main([f"--workdir={workdir}", f"--out={scorer}"]) == 0
    clip_path = str(folder / "3.mp4")
    assert score.main([clip_path, f"--scorer={scorer}", f"--out={result}"]) == 0
    scored = json.loads(result.read_text())
    assert {"energy", "stripes"} <= set(scored["distance"])
    assert 1 <= scored["scores"]["overall"]["value"]
