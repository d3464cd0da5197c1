"""SyncNet against PyTorch's layers, on random weights in the public format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import syncnet, tensors
from tests import checkpoints, test_networks

torch = pytest.importorskip("torch")
nn = torch.nn


def stack(kind, channels, features, kernels, strides, pads, pools):
    """Convolution, batch norm and ReLU six times, with pooling between."""
    layers = []
    for index, width in enumerate(features):
        conv = getattr(nn, f"Conv{kind}")
        size = dict(stride=strides[index], padding=pads[index])
        layers.append(conv(channels, width, kernels[index], **size))
        layers += [getattr(nn, f"BatchNorm{kind}")(width), nn.ReLU()]
        if index in pools:
            layers.append(getattr(nn, f"MaxPool{kind}")(*pools[index]))
        channels = width
    return nn.Sequential(*layers)


def head():
    return nn.Sequential(
        nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024)
    )


class Reference(nn.Module):
    """The two networks, by the names that the public checkpoint has."""

    def __init__(self):
        super().__init__()
        one, wide, edge = (1, 1, 1), (1, 2, 2), (0, 1, 1)
        self.netcnnlip = stack(
            "3d",
            3,
            (96, 256, 256, 256, 256, 512),
            ((5, 7, 7), (1, 5, 5), (1, 3, 3), (1, 3, 3), (1, 3, 3), (1, 6, 6)),
            (wide, wide, one, one, one, one),
            (0, edge, edge, edge, edge, 0),
            {n: ((1, 3, 3), wide, pad) for n, pad in ((0, 0), (1, edge), (4, 0))},
        )
        self.netcnnaud = stack(
            "2d",
            1,
            (64, 192, 384, 256, 256, 512),
            (3, 3, 3, 3, 3, (5, 4)),
            (1,) * 6,
            (1, 1, 1, 1, 1, 0),
            {0: (1, 1, 0), 1: (3, (1, 2), 0), 4: (3, 2, 0)},
        )
        self.netfclip, self.netfcaud = head(), head()


def face_input():
    windows = test_networks.windows_of_faces(3)
    blue_first = np.ascontiguousarray(windows[..., ::-1].transpose(0, 4, 1, 2, 3))
    return windows, torch.tensor(blue_first).float()  # (B, 3, 5, 224, 224)


def sound_input():
    windows = test_networks.windows_of_sound(5)
    return windows, torch.tensor(windows).transpose(1, 2)[:, None]  # (B, 1, 13, 20)


@torch.inference_mode()
def test_embeddings_agree(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Reference().eval()
    state = {k: torch.tensor(value) for k, value in checkpoints.syncnet().items()}
    model.load_state_dict(state)
    # The public file is from before PyTorch's zip files.
    path = tmp_path / "syncnet_v2.model"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    params = syncnet.from_tensors(tensors.read(path))
    for run, (windows, x), first, last in (
        (syncnet.faces, face_input(), model.netcnnlip, model.netfclip),
        (syncnet.sounds, sound_input(), model.netcnnaud, model.netfcaud),
    ):
        expected = last(first(x).flatten(1)).numpy()
        largest = np.abs(expected).max()
        assert np.abs(expected[0] - expected[1]).max() > 0.1 * largest
        for dtype, limit in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
            found = jax.jit(run, static_argnums=2)(params, windows, dtype)
            error = np.abs(np.asarray(found) - expected).max() / largest
            print(f"{run.__name__} {dtype.__name__}: {error:.1e}")
            assert error < limit
    torch.set_num_threads(threads)
