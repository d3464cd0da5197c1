"""The `advanced` network in plain PyTorch, what ours is compared with.

The one thing to know: modules are named as in the Flax network, and `arrange` turns
its parameters into a state dictionary, so that both sides start from the same numbers.
It takes no frame masks: all frames are there, and without a mask PyTorch is faster.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.benches import _sizes

_EPSILON = 1e-5


class _Encoder(nn.Module):
    def __init__(self, inputs: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        width = options["width"]
        self.depth = options["depth"]
        self.residual = nn.Linear(inputs, width) if inputs != width else nn.Identity()
        for layer in range(self.depth):
            self.add_module(f"dense_{layer}", nn.Linear(inputs, width))
            self.add_module(f"norm_{layer}", nn.LayerNorm(width, _EPSILON))
            inputs = width
        self.drop = nn.Dropout(options["dropout"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.residual(x)
        for layer in range(self.depth):
            dense, norm = (
                getattr(self, f"dense_{layer}"),
                getattr(self, f"norm_{layer}"),
            )
            x = self.drop(F.gelu(norm(dense(x))))
        return x + residual


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, ffn: int, dropout: float, attention: float
    ) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_0 = nn.LayerNorm(width, _EPSILON)
        self.expand = nn.Linear(width, ffn)
        self.contract = nn.Linear(ffn, width)
        self.norm_1 = nn.LayerNorm(width, _EPSILON)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, tokens, width = x.shape
        split = self.project(x).view(size, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        attended = attended.transpose(1, 2).reshape(size, tokens, width)
        x = self.norm_0(x + self.drop(self.out(attended)))
        hidden = self.drop(F.relu(self.expand(x)))
        return self.norm_1(x + self.drop(self.contract(hidden)))


class _StackedLinear(nn.Module):
    """One matrix a task."""

    def __init__(self, tasks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(tasks, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(tasks, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.kernel)


class _StackedNorm(nn.Module):
    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(tasks, width))
        self.bias = nn.Parameter(torch.empty(tasks, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=_EPSILON)
        return torch.addcmul(self.bias[:, None], x, self.scale[:, None])


class _Heads(nn.Module):
    def __init__(self, tasks: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.depth, self.rate = len(options["head_hidden"]), options["head_dropout"]
        self.scale = nn.Parameter(torch.empty(tasks, 1))
        inputs = options["width"]
        for layer, width in enumerate(options["head_hidden"]):
            self.add_module(f"dense_{layer}", _StackedLinear(tasks, inputs, width))
            self.add_module(f"norm_{layer}", _StackedNorm(tasks, width))
            inputs = width
        self.out = _StackedLinear(tasks, inputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale[:, None]  # (B, D) -> (K, B, D)
        for layer in range(self.depth):
            dense, norm = (
                getattr(self, f"dense_{layer}"),
                getattr(self, f"norm_{layer}"),
            )
            rate = self.rate / (2 if layer == self.depth - 1 else 1)
            x = F.dropout(F.gelu(norm(dense(x))), rate, self.training)
        return 1 + 4 * torch.sigmoid(self.out(x)[..., 0].T)


class Network(nn.Module):
    """The network; its parameters have no values until a state is loaded."""

    def __init__(
        self, options: Mapping[str, Any], *, widths: Mapping[str, int], num_tasks: int
    ) -> None:
        """Makes the layers.

        Args:
            options: `models.Model.options`, of the preset `advanced`.
            widths: of each modality, in the order of tokens.
            num_tasks: K; scores are from 1 to 5.
        """
        super().__init__()
        self.modalities, self.width = tuple(widths), options["width"]
        for name, inputs in widths.items():
            self.add_module(f"encoders_{name}", _Encoder(inputs, options))
        self.blocks = {}
        for ours, kind in (("time", "temporal"), ("path_b", "fusion")):
            self.blocks[ours] = [
                f"{ours}_{layer}" for layer in range(options[f"{kind}_layers"])
            ]
            for name in self.blocks[ours]:
                fields = [options[f"{kind}_{part}"] for part in ("heads", "ffn")]
                rates = options[f"{kind}_dropout"], options["attention_dropout"]
                self.add_module(name, _Block(self.width, *fields, *rates))
        self.pool_dense = nn.Linear(2 * self.width, self.width)
        tokens = len(widths) * self.width
        self.path_a_expand = nn.Linear(tokens, 2 * self.width)
        self.path_a_contract = nn.Linear(2 * self.width, self.width)
        # A network without dropout has none in path A, either.
        on = options["dropout"] > 0
        self.path_a_drop = nn.Dropout(_sizes.PATH_A_DROPOUT if on else 0.0)
        self.head = _Heads(num_tasks, options)

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        """Scores clips (B, K) from the features of each modality (B, T, D)."""
        pairs = zip(self.modalities, features, strict=True)
        x = torch.cat([getattr(self, f"encoders_{n}")(rows) for n, rows in pairs])
        for name in self.blocks["time"]:
            x = getattr(self, name)(x)
        x = self.pool_dense(torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=-1))
        tokens = x.view(len(self.modalities), -1, self.width).transpose(0, 1)
        one = self.path_a_drop(F.gelu(self.path_a_expand(tokens.flatten(1))))
        for name in self.blocks["path_b"]:
            tokens = getattr(self, name)(tokens)
        return self.head((self.path_a_contract(one) + tokens.mean(dim=1)) / 2)


def arrange(params: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Turns parameters of the Flax network into a state of `Network`.

    Args:
        params: by path, such as `time_0/expand/kernel`. What stands in for an absent
            modality is left out.

    Example:
        >>> arrange({"pool_dense/kernel": np.zeros((4, 2))})["pool_dense.weight"].shape
        torch.Size([2, 4])
    """
    found = {}
    for key, array in params.items():
        *path, leaf = key.split("/")
        if key == "absent" or "attention" in path:
            continue
        if path[0] == "head":
            path.remove("stack")
        elif leaf == "kernel":
            array, leaf = array.T, "weight"
        elif leaf == "scale":
            leaf = "weight"
        found[".".join((*path, leaf))] = array
    for name in {key.split("/")[0] for key in params if "/attention/" in key}:
        width = len(params[f"{name}/attention/out/bias"])
        for part, leaf, columns in (("kernel", "weight", width), ("bias", "bias", 1)):
            three = [
                params[f"{name}/attention/{one}/{part}"].reshape(columns, width).T
                for one in ("query", "key", "value")
            ]
            three = np.concatenate(three)
            found[f"{name}.project.{leaf}"] = three[:, 0] if leaf == "bias" else three
        out = params[f"{name}/attention/out/kernel"].reshape(width, width)
        found[f"{name}.out.weight"] = out.T
        found[f"{name}.out.bias"] = params[f"{name}/attention/out/bias"]
    return {
        name: torch.from_numpy(np.array(array, order="C"))
        for name, array in found.items()
    }
