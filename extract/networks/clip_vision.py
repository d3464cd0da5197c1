"""Visual backend `clip`: the vision tower of CLIP, through the library transformers.

The one thing to know: this is the only network that PyTorch runs, on the CPU; it needs
`pip install -e '.[clip]'`. Its features are the image embeddings before they are
normalised to length 1.

References:
    Radford et al. 2021, "Learning transferable visual models from natural language
    supervision".
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from extract.networks import tensor_file, weights
from tqa_jax import schema

SIDE = 224

# What the image processor does without settings.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def load(
    found: weights.Found,
) -> tuple[Callable[[UInt8[np.ndarray, "B 224 224 3"]], Float[np.ndarray, "B D"]], int]:
    """Makes the function that computes features.

    Args:
        found: weights and settings of a CLIP, or of its vision tower alone.

    Returns:
        A function from RGB pictures to features, and their number D.

    Raises:
        schema.InputError: the libraries are missing, or these are not the weights of
            a CLIP for pictures of 224x224.
    """
    try:
        import torch
        import transformers
        from huggingface_hub import errors
    except ImportError as error:
        raise schema.InputError(
            "the visual backend clip runs on PyTorch and transformers: `pip install "
            "-e '.[clip]'`, or choose --visual=resnet101 or --visual=nss"
        ) from error
    settings = dict(found.config.get("vision_config") or found.config)
    kind = settings.get("model_type")
    if kind != "clip_vision_model" and found.config.get("model_type") != "clip":
        raise schema.InputError(
            f"{found.origin} is of kind {kind!r} by its config.json; expected 'clip' "
            "or 'clip_vision_model'"
        )
    if "projection_dim" in found.config:
        settings["projection_dim"] = found.config["projection_dim"]
    try:
        config = transformers.CLIPVisionConfig.from_dict(settings)
        model = transformers.CLIPVisionModelWithProjection(config)
    except (ArithmeticError, LookupError, errors.StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise schema.InputError(
            f"config.json of {found.origin} describes no CLIP: {message}"
        ) from error
    _check_size(found, model.config.image_size)
    expected = model.state_dict()
    tensors = tensor_file.read(found.file)
    for name, value in expected.items():
        shape = tensors[name].shape if name in tensors else "missing"
        if shape != tuple(value.shape):
            raise schema.InputError(
                f"{found.origin} is not a CLIP of these sizes: {name} is {shape}, "
                f"expected {tuple(value.shape)}"
            )
    model.load_state_dict({name: torch.from_numpy(tensors[name]) for name in expected})
    model.eval()
    mean, scale = _normalisation(found)

    @torch.inference_mode()
    def features(
        pictures: UInt8[np.ndarray, "B 224 224 3"],
    ) -> Float[np.ndarray, "B D"]:
        pixels = (pictures.astype(np.float32) - mean) * scale
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return model(pixel_values=batch).image_embeds.numpy()

    return features, model.config.projection_dim


def _check_size(found: weights.Found, side: int) -> None:
    """Refuses networks for which a crop would have to be scaled first."""
    if side != SIDE:
        raise schema.InputError(
            f"{found.origin} takes pictures of {side}x{side}; expected a CLIP for "
            f"{SIDE}x{SIDE}"
        )


def _normalisation(found: weights.Found) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and factor of pixels in 0 to 255, as the image processor has them.

    Its other steps, scaling and cropping to 224x224, change nothing in such pictures.
    """
    given = found.preprocessor
    for step in ("do_rescale", "do_normalize"):
        if given.get(step, True) is not True:
            raise schema.InputError(
                f"{weights.PREPROCESSOR} of {found.origin} has {step} "
                f"{given[step]!r}; expected true"
            )
    rescale = given.get("rescale_factor", 1 / 255)
    mean = np.array(given.get("image_mean", _MEAN), np.float32) / rescale
    std = np.array(given.get("image_std", _STD), np.float32) / rescale
    return mean.astype(np.float32), (1 / std).astype(np.float32)
