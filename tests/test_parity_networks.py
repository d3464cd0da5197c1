"""ResNet, HuBERT and Wav2Vec2 against transformers, on the same random checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import resnet, wav2vec2
from tests import checkpoints, test_networks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RESNET_101 = {"embedding_size": 64, "hidden_sizes": (256, 512, 1024, 2048)}
RESNET_101 |= {"depths": (3, 4, 23, 3)}
# What test checkpoints state of their sizes, as in the public networks.
BASE = {
    name: getattr(transformers.HubertConfig(), name)
    for name in wav2vec2.Wav2Vec2.__annotations__
    if hasattr(transformers.HubertConfig(), name) and name != "dtype"
}
SPEECH = {
    "hubert": (checkpoints.hubert, transformers.HubertModel),
    "wav2vec2": (checkpoints.wav2vec2, transformers.Wav2Vec2Model),
}


def load(reader, folder):
    """Reads a checkpoint as the extractor does; returns what runs it in a dtype."""
    found, tensors = checkpoints.read(folder)
    module = reader.from_json(found)
    params = reader.from_tensors(tensors, module)

    def run(dtype, *batch):
        return np.asarray(jax.jit(module.clone(dtype=dtype).apply)(params, *batch))

    return run


def test_default_sizes_are_those_of_the_public_networks():
    assert resnet.ResNet() == resnet.ResNet(**RESNET_101)
    base = {**BASE, "conv_dim": tuple(BASE["conv_dim"])}
    assert len(base) == 8 and wav2vec2.Wav2Vec2() == wav2vec2.Wav2Vec2(**base)


def theirs(kind, folder):
    """Reads a checkpoint with transformers, which must find all that it wants."""
    network, said = kind.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["mismatched_keys"]
    return network.eval()


def relative(found, exact):
    return np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))


@pytest.mark.parametrize(
    ("sizes", "size", "clips"),
    [({}, 50, 3), pytest.param(RESNET_101, 224, 2, marks=pytest.mark.slow)],
    ids=["tiny", "resnet-101"],
)
def test_resnet_equals_transformers(tmp_path, sizes, size, clips):
    run = load(resnet, checkpoints.resnet(tmp_path, **sizes))
    shape = (clips, size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    normed = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        network = theirs(transformers.ResNetModel, tmp_path)
        expected = network(torch.tensor(normed)).pooler_output[..., 0, 0].numpy()
    assert expected.std(0).max() > 0.1

    np.testing.assert_allclose(run(jnp.float32, pixels), expected, atol=1e-4)
    assert relative(run(jnp.bfloat16, pixels), expected) < 0.02


def test_pixels_are_normalised_as_the_image_processor_does(tmp_path):
    pytest.importorskip("PIL", reason="transformers wants Pillow for pictures")
    run = load(resnet, checkpoints.resnet(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    processor = transformers.ConvNextImageProcessorPil.from_pretrained(
        tmp_path, do_resize=False
    )
    with torch.inference_mode():
        network = theirs(transformers.ResNetModel, tmp_path)
        batch = processor(pixels, return_tensors="pt")
        expected = network(**batch).pooler_output[..., 0, 0].numpy()
    found = run(jnp.float32, pixels[None])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", SPEECH)
@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ({}, (1.3, 0.9, 0.025)),
        pytest.param(BASE, (5.0, 3.21, 0.5), marks=pytest.mark.slow),
    ],
    ids=["tiny", "base"],
)
def test_each_clip_equals_transformers_on_it_alone(tmp_path, kind, sizes, seconds):
    write, network = SPEECH[kind]
    run = load(wav2vec2, write(tmp_path, **sizes))
    clips = [test_networks.clip(round(16_000 * length)) for length in seconds]
    batch, lengths = test_networks.padded(clips, np.nan, more=640)
    with torch.inference_mode():
        network = theirs(network, tmp_path)
        expected = [
            network(torch.tensor(samples[None])).last_hidden_state[0].numpy()
            for samples in clips
        ]
    assert expected[0].std(0).min() > 0.1

    exact, rough = (run(dtype, batch, lengths) for dtype in (jnp.float32, jnp.bfloat16))
    for row, near, own in zip(exact, rough, expected, strict=True):
        assert wav2vec2.num_frames(len(row)) <= len(own) <= len(row)
        np.testing.assert_allclose(row[: len(own)], own, atol=1e-4)
        assert relative(near[: len(own)], own) < 0.05


@pytest.mark.parametrize("loudness", [0.3, 1e-4, 0.0])
def test_a_clip_is_prepared_as_the_feature_extractor_does(tmp_path, loudness):
    folder = checkpoints.hubert(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    samples = 0.02 + loudness * np.random.default_rng(0).standard_normal(30_000)
    samples = samples.astype(np.float32)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np")
    np.testing.assert_allclose(
        wav2vec2.prepare(samples), expected["input_values"][0], atol=1e-6
    )
