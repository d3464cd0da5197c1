"""ResNet-101 and HuBERT base against PyTorch, on the same weights.

Both sides get the same random weights and inputs, and that they give the same features
is asserted before anything is timed. Each has a process of its own with the same number
of threads, see `sides`: that of `OMP_NUM_THREADS`, else all cores. PyTorch is what
transformers makes of it, eager, in inference mode; pictures have their channels last,
and speech its fused attention. All is float32, and pictures come as bytes.
"""

import contextlib
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import sides, timing
from tqa_jax import machine, schema

_OURS, _TORCH = "ours", "transformers"
_RESNET = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 23, 3],
}
_TINY_RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
}
_HUBERT = {"hidden_size": 768, "num_hidden_layers": 12, "conv_dim": [512] * 7}
_TINY_HUBERT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
}
_COMPARED = 97  # every so many-th feature is


def run(rounds: int, *, quick: bool) -> list[timing.Table]:
    """Measures rows E1 and E2.

    Raises:
        schema.InputError: without PyTorch or transformers.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise schema.InputError(
                f"there is no {name} to compare with; pip install -e '.[bench]'"
            )
    pictures = (2, 64, 64, 3) if quick else (8, 224, 224, 3)
    one, four = ((1, 4000), (4, 4000)) if quick else ((1, 80_000), (4, 80_000))
    resnet = _TINY_RESNET if quick else _RESNET
    hubert = _TINY_HUBERT if quick else _HUBERT
    threads = int(os.environ.get("OMP_NUM_THREADS", machine.cores()))
    return [
        _compare("E1: ResNet", "resnet", resnet, pictures, threads, rounds),
        _compare("E2: HuBERT", "hubert", hubert, one, threads, rounds),
        _compare("E2: HuBERT, more clips", "hubert", hubert, four, threads, rounds),
    ]


def _compare(
    title: str,
    network: str,
    config: Mapping[str, object],
    shape: tuple[int, ...],
    threads: int,
    rounds: int,
) -> timing.Table:
    """Times both sides, after both have given the same features."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = pathlib.Path(folder) / "drawn.npz"
        np.savez(file, **_draw(network, config, shape))
        workers = {}
        for kind in (_OURS, _TORCH):
            arguments = {"kind": kind, "network": network, "config": dict(config)}
            side = sides.Side(
                f"{__name__}:side",
                arguments | {"file": str(file), "threads": threads},
                threads,
                keep_memory=kind == _OURS,
            )
            workers[kind] = stack.enter_context(sides.start(side))
        found = [np.array(worker.check()) for worker in workers.values()]
        np.testing.assert_allclose(*found, atol=1e-4)
        seconds = sides.interleave(workers, rounds)
    return timing.compare(f"{title}, input {shape}, threads {threads}", seconds, _TORCH)


def _draw(
    network: str, config: Mapping[str, object], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Weights by the names of a checkpoint, and `input`."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name, value in _module(network, config).state_dict().items():
        size = tuple(value.shape)
        if name.endswith("original0"):  # length of a normalised kernel
            drawn[name] = np.ones(size)
        elif len(size) > 1:
            kernel = rng.normal(size=size) * (2 / np.prod(size[1:])) ** 0.5
            # Sums of 0 keep the means that ReLU and GELU give from growing.
            inputs = tuple(range(1, len(size)))
            drawn[name] = kernel - kernel.mean(inputs, keepdims=True)
        elif name.endswith(("weight", "running_var")):
            # The last norm of a block is small, so that sums of blocks don't grow.
            drawn[name] = np.full(size, 0.2 if "layer.2.norm" in name else 1.0)
        elif size:
            drawn[name] = 0.1 * rng.normal(size=size)
    drawn = {name: value.astype(np.float32) for name, value in drawn.items()}
    if network == "resnet":
        return drawn | {"input": rng.integers(0, 256, shape, dtype=np.uint8)}
    return drawn | {"input": rng.normal(size=shape).astype(np.float32)}


def _module(network: str, config: Mapping[str, object]) -> Any:
    import transformers

    if network == "resnet":
        return transformers.ResNetModel(transformers.ResNetConfig(**config))
    # Without the vector that hides frames in training.
    settings = transformers.HubertConfig(**config, mask_time_prob=0.0)
    return transformers.HubertModel(settings)


_Work = Callable[[], np.ndarray]


def side(
    kind: str, network: str, config: dict[str, object], file: str, threads: int
) -> sides.Work:
    """Computes features of the drawn input; `check` returns some of them.

    Args:
        kind: who does.
        network: `resnet` or `hubert`.
        config: what the hub's `config.json` would say.
        file: weights and input.
        threads: for libraries that don't look at the environment.
    """
    with np.load(file) as found:
        drawn = {name: found[name] for name in found.files}
    given = drawn.pop("input")
    if kind == _OURS:
        work = _ours(network, config, drawn, given)
    else:
        work = _torch(network, config, drawn, given, threads)
    return sides.Work(work, lambda: work().ravel()[::_COMPARED].tolist())


def _ours(
    network: str,
    config: Mapping[str, object],
    weights: Mapping[str, np.ndarray],
    given: np.ndarray,
) -> _Work:
    import jax

    from extract.networks import resnet, wav2vec2

    reader = {"resnet": resnet, "hubert": wav2vec2}[network]
    module = reader.from_json(config)
    params = jax.device_put(reader.from_tensors(weights, module))
    program = jax.jit(module.apply)
    inputs = (given,)
    if network == "hubert":
        inputs += (np.full(len(given), given.shape[-1]),)
    return lambda: np.asarray(program(params, *inputs))


def _torch(
    network: str,
    config: Mapping[str, object],
    weights: Mapping[str, np.ndarray],
    given: np.ndarray,
    threads: int,
) -> _Work:
    import torch

    torch.set_num_threads(threads)
    module = _module(network, config)
    if network == "resnet":
        module = module.to(memory_format=torch.channels_last)
    state = {name: torch.tensor(value) for name, value in weights.items()}
    module.load_state_dict(state, strict=False)  # counters of batch norms are missing
    module.eval().requires_grad_(False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])

    def work() -> np.ndarray:
        x = torch.from_numpy(given)
        with torch.inference_mode():
            if network == "hubert":
                return module(x).last_hidden_state.numpy()
            x = ((x.float() / 255 - mean) / std).permute(0, 3, 1, 2)
            return module(x).pooler_output[..., 0, 0].numpy()

    return work
