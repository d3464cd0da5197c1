"""PyTorch's side of the training benchmarks: the same step, written as one would.

The one thing to know: AdamW, clipping, losses, dropout and what is decayed are those of
our step; `differences` says how far the two are apart after a step without dropout.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from experiments import sides
from experiments.benches import _sizes, _torch_network

_EPSILON = 1e-6
# Adam divides a gradient by its size: of one that is rounding error alone, such as that
# of an attention key's bias, it makes a step of any sign.
_SURE = 0.01


class Training:
    """One run: a network, its optimiser, and its step."""

    def __init__(
        self,
        options: Mapping[str, Any],
        params: Mapping[str, np.ndarray],
        *,
        num_tasks: int,
        learning_rate: float,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        """Makes the run.

        Args:
            options: of the network, see `_torch_network.Network`.
            params: to start from, of the Flax network, by path.
            num_tasks: K.
            learning_rate: constant.
            device: where it trains.
            compiled: runs network and loss through `torch.compile`.
        """
        self.network = _torch_network.Network(
            options, widths=_sizes.WIDTHS, num_tasks=num_tasks
        ).to(device)
        self.network.load_state_dict(_torch_network.arrange(params))
        named = dict(self.network.named_parameters())
        decayed = [name for name in named if name.endswith(("weight", "kernel"))]
        decayed = [name for name in decayed if ".norm_" not in f".{name}"]
        groups = [
            {"params": [named[name] for name in decayed]},
            {
                "params": [named[name] for name in set(named) - set(decayed)],
                "weight_decay": 0.0,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, weight_decay=_sizes.WEIGHT_DECAY, fused=True
        )
        self._objective = torch.compile(self._total) if compiled else self._total

    def scores(self, features: Sequence[torch.Tensor]) -> np.ndarray:
        """Scores without dropout, (B, K)."""
        self.network.eval()
        with torch.inference_mode():
            found = self.network(*features)
        self.network.train()
        return found.cpu().numpy()

    def _total(self, features, labels, present):
        return objective(self.network(*features), labels, present)

    def step(
        self,
        features: Sequence[torch.Tensor],
        labels: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Takes one step and returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = self._objective(features, labels, present)
        total.backward()
        torch.nn.utils.clip_grad_norm_(
            self.network.parameters(), _sizes.CLIP_NORM, foreach=True
        )
        self.optimizer.step()
        return total.detach()


def objective(
    scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Sum of the tasks' masked losses and the weighted consistency."""
    error = torch.where(present, scores - labels, 0.0)
    loss = error.square() + _sizes.L1_WEIGHT * error.abs()
    by_task = loss.sum(dim=0) / present.sum(dim=0).clamp(min=1)
    chosen = scores[:, list(_sizes.CONSISTENCY_TASKS)]
    centred = chosen - chosen.mean(dim=0)
    covariance = centred.T @ centred / (len(scores) - 1 + _EPSILON)
    deviation = (covariance.diagonal() + _EPSILON).sqrt()
    correlation = covariance / (torch.outer(deviation, deviation) + _EPSILON)
    lower = torch.tril_indices(*correlation.shape, offset=-1, device=scores.device)
    agreed = 1 - correlation[lower[0], lower[1]].mean()
    return by_task.sum() + _sizes.CONSISTENCY_WEIGHT * agreed


def differences(
    training: Training, scores: np.ndarray, total: float, ours: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """How far a run is from ours after its first step, without dropout.

    Args:
        training: after the step.
        scores: before it.
        total: loss of the step.
        ours: of `_ours.outcome`.

    Returns:
        Largest differences: `scores`; `loss`, relative; `gradient`, of Adam's first
        moment, relative to the moment's norm; `params`, in learning rates,
        of those whose gradient is more than rounding error; and `unsure`, the share of
        parameters of which it is not.
    """
    kinds = {
        kind: _torch_network.arrange(
            {
                name.removeprefix(f"{kind}/"): array
                for name, array in ours.items()
                if name.startswith(f"{kind}/")
            }
        )
        for kind in ("params", "moment")
    }
    rate = training.optimizer.param_groups[0]["lr"]
    norm = float(torch.cat([m.flatten() for m in kinds["moment"].values()]).norm())
    gradient = params = 0.0
    unsure = count = 0
    for name, parameter in training.network.named_parameters():
        mine = training.optimizer.state[parameter]["exp_avg"].cpu()
        moment, updated = kinds["moment"][name], kinds["params"][name]
        error = (mine - moment).abs()
        gradient = max(gradient, float(error.max()) / norm)
        apart = (parameter.detach().cpu() - updated).abs() / rate
        sure = error <= _SURE * moment.abs()
        params = max(params, float(torch.where(sure, apart, 0.0).max()))
        unsure, count = unsure + int((~sure).sum()), count + sure.numel()
    return {
        "scores": float(np.abs(scores - ours["scores"]).max()),
        "loss": abs(total / float(ours["total"]) - 1),
        "gradient": gradient,
        "params": params,
        "unsure": unsure / count,
    }


class _Loaded:
    """What the files of a folder say; the device and the threads are set, too."""

    def __init__(self, folder: str) -> None:
        place = pathlib.Path(folder)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.options = json.loads((place / "options.json").read_text("utf-8"))
        with np.load(place / "params.npz") as file:
            self.params = dict(file)
        with np.load(place / "batch.npz") as file:
            data = {n: torch.from_numpy(file[n]).to(self.device) for n in file.files}
        features = [data[name] for name in _sizes.WIDTHS]
        self.data = features, data["labels"], data["present"]

    def training(self, learning_rate: float, *, compiled: bool = False) -> Training:
        return Training(
            self.options,
            self.params,
            num_tasks=self.data[1].shape[-1],
            learning_rate=learning_rate,
            device=self.device,
            compiled=compiled,
        )

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def side(folder: str, compiled: bool) -> sides.Work:
    """Trains with PyTorch; a turn is a step.

    `check` takes the first step and returns the device's type and, where ours is there
    to compare with, `differences`.

    Args:
        folder: where `_ours.write` wrote, and then our side's `check`.
        compiled: with `torch.compile`.
    """
    loaded = _Loaded(folder)
    training = loaded.training(_sizes.LEARNING_RATE, compiled=compiled)

    def once() -> torch.Tensor:
        total = training.step(*loaded.data)
        loaded.wait()
        return total

    def check() -> tuple[str, dict[str, float]]:
        scores = training.scores(loaded.data[0])
        total = float(once())
        with np.load(pathlib.Path(folder) / "ours.npz") as file:
            return loaded.device.type, differences(training, scores, total, file)

    return sides.Work(once, check)


def runs(folder: str, learning_rates: Sequence[float], steps: int) -> sides.Work:
    """Trains several runs one after another; a turn is `steps` steps of each.

    Args:
        folder: where `_ours.write` wrote.
        learning_rates: of each run.
        steps: of each run in a turn.
    """
    loaded = _Loaded(folder)
    trained = [loaded.training(rate) for rate in learning_rates]

    def once() -> None:
        for training in trained:
            for _ in range(steps):
                training.step(*loaded.data)
        loaded.wait()

    return sides.Work(once, lambda: loaded.device.type)
