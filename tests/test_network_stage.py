import jax
import numpy as np
import pytest

from extract import backends, clip, run
from extract import network_stage as device
from extract.backends import _speech
from extract.networks import resnet, tensors, wav2vec2
from tests import checkpoints, media
from tqa_jax import schema

LENGTHS = (0.4, 0.8, 1.6)


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
