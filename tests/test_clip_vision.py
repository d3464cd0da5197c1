import dataclasses
import json
import sys

import numpy as np
import pytest

from extract.backends import clip
from extract.networks import clip_vision, tensor_file, weights
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
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 32,
}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """A tiny CLIP with random weights, text tower included, as on the hub."""
    import torch

    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 50}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=12
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


def test_features_equal_the_library_from_end_to_end(transformers, folder):
    import torch

    pytest.importorskip("PIL")
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    batch = processor(images=list(pictures(3)), return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).image_embeds.numpy()
    features, width = clip_vision.load(weights.find(clip.SOURCE, str(folder)))
    found = features(pictures(3))
    assert width == 12 and found.shape == (3, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_features_equal_the_library_behind_the_processor(transformers, folder):
    import torch

    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    mean, std = (np.array(PREPROCESSOR[f"image_{name}"]) for name in ("mean", "std"))
    pixels = ((pictures(2) / 255 - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(torch.tensor(pixels).float()).image_embeds.numpy()
    features, _ = clip_vision.load(weights.find(clip.SOURCE, str(folder)))
    np.testing.assert_allclose(features(pictures(2)), expected, rtol=1e-4, atol=1e-5)


def test_a_pickle_and_a_vision_tower_alone_give_the_same(
    transformers, folder, tmp_path
):
    import torch

    features, _ = clip_vision.load(weights.find(clip.SOURCE, str(folder)))
    expected = features(pictures(2))
    tensors = tensor_file.read(folder / "model.safetensors")
    tensors = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = (folder / weights.CONFIG).read_bytes()
    (tmp_path / weights.CONFIG).write_bytes(config)
    found, _ = clip_vision.load(weights.find(clip.SOURCE, str(tmp_path)))
    np.testing.assert_array_equal(found(pictures(2)), expected)
    tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    tower.save_pretrained(tmp_path / "tower")
    found, width = clip_vision.load(weights.find(clip.SOURCE, str(tmp_path / "tower")))
    np.testing.assert_array_equal(found(pictures(2)), expected)
    assert width == 12


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_other_networks_are_refused(transformers, folder):
    found = weights.find(clip.SOURCE, str(folder))

    def refused(match, **changed):
        with pytest.raises(schema.InputError, match=match):
            clip_vision.load(dataclasses.replace(found, config=changed))

    refused("kind None.*expected 'clip'")
    refused("kind 'resnet'", model_type="resnet")
    vision = found.config["vision_config"]
    larger = vision | {"image_size": 336}
    refused("takes pictures of 336x336", model_type="clip", vision_config=larger)
    wider = vision | {"hidden_size": 32}
    refused(
        r"class_embedding is \(16,\), expected \(32,\)",
        model_type="clip",
        vision_config=wider,
    )
    deeper = vision | {"num_hidden_layers": 3}
    for wrong in (
        {"hidden_size": "x"},
        {"num_attention_heads": 3},
        {"patch_size": 0},
        {"hidden_act": "nope"},
    ):
        described = vision | wrong
        refused("describes no CLIP", model_type="clip", vision_config=described)
    with pytest.raises(schema.InputError, match="do_normalize False; expected true"):
        clip_vision.load(
            dataclasses.replace(found, preprocessor={"do_normalize": False})
        )
    refused("layers.2.*is missing", model_type="clip", vision_config=deeper)


def test_without_its_libraries_it_says_what_to_install(monkeypatch, tmp_path):
    found = weights.Found(tmp_path / "a", {"model_type": "clip"}, {}, "", "")
    for name in ("torch", "transformers"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(schema.InputError, match=r"-e '.\[clip\]'") as caught:
                clip_vision.load(found)
            assert "--visual=nss" in str(caught.value)
