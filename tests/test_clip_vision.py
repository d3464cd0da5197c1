import dataclasses
import json
import sys

import numpy as np
import pytest

from extract.backends import clip
from extract.networks import clip_vision, tensors, weights
from tqa_jax import schema

PREPROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """A tiny CLIP with random weights, text tower included, as on the hub."""
    import torch

    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=SIZES | {"num_hidden_layers": 1, "vocab_size": 50},
        vision_config=SIZES | {"num_hidden_layers": 2, "patch_size": 32},
        projection_dim=12,
    )
    config.vision_config.projection_dim = 12
    path = tmp_path_factory.mktemp("clip")
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape)
    model.save_pretrained(path)
    (path / weights.PREPROCESSOR).write_text(json.dumps(PREPROCESSOR))
    return path


def pictures(count):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (count, 14, 14, 3), np.uint8)
    return tiles.repeat(16, axis=1).repeat(16, axis=2)


def features(folder):
    return clip_vision.load(clip.find(str(folder)))(pictures(3))


@pytest.mark.parametrize("processed", [True, False])
def test_features_equal_the_library(transformers, folder, processed):
    import torch

    if processed:
        pytest.importorskip("PIL")
        processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
        batch = processor(images=list(pictures(3)), return_tensors="pt")
    else:
        mean, std = (np.array(PREPROCESSOR[f"image_{key}"]) for key in ("mean", "std"))
        pixels = ((pictures(3) / 255 - mean) / std).transpose(0, 3, 1, 2)
        batch = {"pixel_values": torch.tensor(pixels).float()}
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(**batch).image_embeds.numpy()
    found = features(folder)
    assert found.shape == (3, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_pickle_and_a_vision_tower_alone_give_the_same(
    transformers, folder, tmp_path
):
    import torch

    values = tensors.read(folder / "model.safetensors")
    values = {name: torch.tensor(value) for name, value in values.items()}
    torch.save(values, tmp_path / "pytorch_model.bin")
    (tmp_path / weights.CONFIG).write_bytes((folder / weights.CONFIG).read_bytes())
    np.testing.assert_array_equal(features(tmp_path), features(folder))
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    tower.save_pretrained(tmp_path / "tower")
    np.testing.assert_array_equal(features(tmp_path / "tower"), features(folder))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_other_networks_are_refused(transformers, folder):
    found = clip.find(str(folder))

    def refused(match, **config):
        with pytest.raises(schema.InputError, match=match):
            clip_vision.load(dataclasses.replace(found, config=config))

    refused("kind None.*expected 'clip'")
    refused("kind 'resnet'", model_type="resnet")
    for change, message in (
        ({"image_size": 336}, "takes pictures of 336x336"),
        ({"hidden_size": 32}, r"class_embedding has shape \(16,\).* shape \(32,\)"),
        ({"num_hidden_layers": 3}, "CLIP checkpoint lacks the tensor .*layers.2"),
        ({"hidden_size": "x"}, "describes no CLIP"),
        ({"num_attention_heads": 3}, "describes no CLIP"),
        ({"patch_size": 0}, "describes no CLIP"),
        ({"hidden_act": "nope"}, "describes no CLIP"),
    ):
        vision = found.config["vision_config"] | change
        refused(message, model_type="clip", vision_config=vision)


def test_without_its_libraries_it_says_what_to_install(monkeypatch, tmp_path):
    found = weights.Found(tmp_path / "a", {"model_type": "clip"}, {}, "", "")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(schema.InputError, match=r"-e '.\[clip\]', or choose --vis"):
        clip_vision.load(found)
