"""The vision tower of CLIP, through the library transformers.

This is the only network that PyTorch runs, on the CPU; it needs the extra `clip`. Its
features are the image embeddings before they are normalised to length 1.

References:
    Radford et al. 2021, "Learning transferable visual models from natural language
    supervision".
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from extract.networks import tensors, weights
from tqa_jax import cli, schema

SIDE = 224

# What the image processor does without settings.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def load(
    found: weights.Found,
) -> Callable[[UInt8[np.ndarray, "B 224 224 3"]], Float[np.ndarray, "B D"]]:
    """Makes the function from RGB pictures to features.

    Args:
        found: weights and settings of a CLIP, or of its vision tower alone.

    Raises:
        schema.InputError: the libraries are missing, or these are not the weights of
            a CLIP for pictures of 224x224.
    """
    cli.need("torch", "transformers", instead=", or choose --visual=resnet101 or nss")
    import torch
    import transformers
    from huggingface_hub import errors

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
        model = transformers.CLIPVisionModelWithProjection(config).eval()
    except (ArithmeticError, LookupError, errors.StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise schema.InputError(
            f"config.json of {found.origin} describes no CLIP: {message}"
        ) from error
    if config.image_size != SIDE:  # A crop would have to be scaled first.
        raise schema.InputError(
            f"{found.origin} takes pictures of {config.image_size}x{config.image_size};"
            f" expected a CLIP for {SIDE}x{SIDE}"
        )
    take = tensors.Tensors(tensors.read(found.file), "CLIP")
    state = model.state_dict()
    model.load_state_dict(
        {name: torch.from_numpy(take(name, *state[name].shape)) for name in state}
    )
    # As the image processor does it, of pixels in 0 to 255; its other steps, scaling
    # and cropping to 224x224, change nothing in such pictures.
    rescale = found.preprocessor.get("rescale_factor", 1 / 255)
    mean, std = (
        np.array(found.preprocessor.get(key, usual), np.float32) / rescale
        for key, usual in (("image_mean", _MEAN), ("image_std", _STD))
    )
    mean, scale = mean.astype(np.float32), (1 / std).astype(np.float32)

    @torch.inference_mode()
    def features(
        pictures: UInt8[np.ndarray, "B 224 224 3"],
    ) -> Float[np.ndarray, "B D"]:
        pixels = (pictures.astype(np.float32) - mean) * scale
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        return model(pixel_values=batch).image_embeds.numpy()

    return features
