import jax
import numpy as np
import pytest

from extract import backends, clip, measure, run
from extract import network_stage as device
from extract.backends import _speech
from extract.networks import resnet, tensors, wav2vec2
from tests import checkpoints, media
from tqa_jax import schema

ROWS = 32
LENGTHS = (0.4, 1.2, 2.6)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.resnet(folder / "resnet")
    checkpoints.hubert(folder / "hubert")
    return backends.options(
        visual="resnet101",
        visual_weights=str(folder / "resnet"),
        audio="hubert",
        audio_weights=str(folder / "hubert"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three clips with faces, of different length."""
    folder = tmp_path_factory.mktemp("clips")
    for index, seconds in enumerate(LENGTHS):
        media.face(folder / f"{index}.mp4", seconds, picture=media.talking(index + 1))
    return folder


@pytest.fixture(scope="module")
def observed(folder, options):
    return {str(i): clip.observe(folder / f"{i}.mp4", options) for i in range(3)}


def _networks(options, **more):
    settings = [one for one in options.settings if hasattr(one.module, "network")]
    return device.Networks(settings, **more)


def _weights(options):
    return {one.modality: one.weights for one in options.settings if one.weights}


def _alone(observed, options):
    """What the networks give for a clip by itself, without batches or padding."""
    found = _weights(options)

    def run(reader, weights, *batch):
        network = reader.from_json(weights.config)
        params = reader.from_tensors(tensors.read(weights.file), network)
        return np.asarray(jax.jit(network.apply)(params, *batch))

    visual = run(resnet, found["visual"], observed.pending["visual/resnet101"]["crops"])
    samples = wav2vec2.prepare(observed.pending["audio/hubert"]["samples"])
    hidden = run(wav2vec2, found["audio"], samples[None], np.array([len(samples)]))
    return visual, _speech.on_rows(hidden[0], observed.rows)


@pytest.mark.parametrize("device_batch", [7, 130])
def test_batches_over_clips_give_what_each_clip_gives_alone(
    observed, options, device_batch
):
    networks = _networks(options, device_batch=device_batch)
    complete = []
    for key, one in observed.items():
        complete += networks.add(key, one)
    complete = dict(complete + networks.finish())
    assert set(complete) == set(observed)
    described = {one.name: one for one in backends.describe(options)}
    for key, one in complete.items():
        assert one.pending == {} and list(one.features) == list(backends.ORDER)
        for name, values in one.features.items():
            assert values.shape == (one.rows, described[name].width)
            assert np.isnan(values[~one.frame_mask[name]]).all()
        visual, audio = _alone(observed[key], options)
        seen = one.frame_mask["visual"]
        assert np.abs(visual).max() > 0.1 and np.abs(audio).max() > 0.1
        np.testing.assert_allclose(one.features["visual"][seen], visual, atol=1e-4)
        np.testing.assert_allclose(one.features["audio"], audio, atol=1e-4)
    assert all(spent > 0 for spent in networks.seconds.values())


def test_a_clip_that_fills_its_batches_does_not_wait(observed, options):
    networks = _networks(options, device_batch=10)
    assert [key for key, _ in networks.add("0", observed["0"])] == ["0"]
    assert networks.finish() == []


def test_a_network_is_compiled_once_for_a_shape(observed, options, monkeypatch):
    traced = []
    pooled = resnet.pooled

    def counted(x, *arguments):
        traced.append(x.shape)
        return pooled(x, *arguments)

    monkeypatch.setattr(resnet, "pooled", counted)
    networks = _networks(options, device_batch=8)
    for key, one in observed.items():
        networks.add(key, one)
    networks.finish()
    assert traced == [(8, 112, 112, 8)]


def test_rows_without_a_face_are_masked(tmp_path, options):
    talking = media.talking()

    def picture(time):
        return np.full((256, 256, 3), 90, np.uint8) if time < 0.4 else talking(time)

    one = clip.observe(media.face(tmp_path / "a.mp4", 1.2, picture=picture), options)
    networks = _networks(options)
    ((_, whole),) = networks.add("a", one) + networks.finish()
    seen = whole.frame_mask["visual"]
    assert (
        not seen[:10].any()
        and seen.sum() == len(one.pending["visual/resnet101"]["crops"]) > 15
    )
    assert np.isfinite(whole.features["visual"][seen]).all()
    assert np.isnan(whole.features["visual"][~seen]).all()


def test_sound_is_padded_to_few_lengths_and_never_much():
    counts = np.arange(640, 16_000 * 300, 640)
    lengths = np.array([_speech.padded_length(int(count)) for count in counts])
    assert (lengths >= counts).all() and len(set(lengths)) < 30
    longer = counts > 16_000 * 5
    assert (lengths[longer] <= 1.27 * counts[longer]).all()


def test_bfloat16_is_near_float32(observed, options):
    low = options.having(network_dtype="bfloat16")
    found = []
    for one in (options, low):
        networks = _networks(one)
        found += dict(networks.add("0", observed["0"]) + networks.finish()).values()
    for name in ("visual", "audio"):
        one, other = (clip.features[name] for clip in found)
        seen = found[0].frame_mask[name]
        assert 0 < np.abs(one - other)[seen].max() < 0.15 * np.abs(one[seen]).max()


def test_too_little_memory_is_one_clear_line(observed, options, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(resnet, "pooled", full)
    networks = _networks(options, device_batch=4)
    with pytest.raises(schema.InputError, match="4 rows at once.*smaller --device_bat"):
        networks.add("0", observed["0"])


def test_the_command_makes_a_set_with_networks(folder, options, tmp_path, capsys):
    rows = "".join(f"{i},{s},{1 + i}\n" for i, s in enumerate(schema.SPLITS))
    (tmp_path / "labels.csv").write_text("clip,split,overall\n" + rows)
    arguments = [
        f"--clips={folder}",
        f"--labels={tmp_path / 'labels.csv'}",
        f"--out={tmp_path / 'set'}",
        "--num_workers=2",
        "--device_batch=16",
        f"--visual={options.backends['visual']}",
        f"--visual_weights={options.given['visual_weights']}",
        f"--audio={options.backends['audio']}",
        f"--audio_weights={options.given['audio_weights']}",
    ]
    assert run.main(arguments) == 0
    said = capsys.readouterr().out
    assert "visual network" in said and "limited by" in said
    info = schema.load(tmp_path / "set")
    assert info.schema.modalities == backends.describe(options)
    visual = {one.name: one for one in info.schema.modalities}["visual"]
    assert visual.checksum == _weights(options)["visual"].checksum
    assert str(tmp_path.parent) not in (tmp_path / "set/dataset.json").read_text()
    # Another dtype of one network measures that one alone.
    other = [*arguments, "--network_dtype=bfloat16", "--visual=nss+resnet101"]
    assert run.main(other) == 0
    said = capsys.readouterr().out
    assert "measured 3 clips" in said and "visual network" in said
    assert "keypoints" not in said
    assert schema.load(tmp_path / "set").schema.modalities[0].version.startswith("1+")


@pytest.mark.parametrize(
    "more, message",
    [
        ({"visual_weights": "/none"}, "visual_weights is '/none'; expected a local"),
        ({"visual": "nss"}, "--visual_weights is given, but .*'nss' does not read it"),
        ({"sync": "syncnet"}, "syncnet needs weights: download http"),
        ({"network_dtype": "int8"}, "unknown network dtype 'int8'; available: float32"),
        (
            {"visual": "nss", "visual_weights": None, "audio": "logmel"}
            | {"audio_weights": None, "network_dtype": "bfloat16"},
            "no backend is a network that computes in it",
        ),
    ],
)
def test_bad_options_are_one_clear_line(options, more, message):
    with pytest.raises(schema.InputError, match=message):
        clip.check(options.having(**more))


def test_clip_computes_in_float32_alone(tmp_path):
    options = backends.options(visual="clip", network_dtype="bfloat16")
    with pytest.raises(schema.InputError, match="no backend is a network that comp"):
        clip.check(options)


def test_other_weights_have_another_fingerprint(options, folder, tmp_path):
    other = options.having(visual_weights=str(checkpoints.resnet(tmp_path, seed=1)))
    path = folder / "0.mp4"
    assert measure.fingerprint(path, other) != measure.fingerprint(path, options)
