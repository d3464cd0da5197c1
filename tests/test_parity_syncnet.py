"""SyncNet against PyTorch's layers, on random weights in the public format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extract.networks import syncnet, tensor_file
from tests import test_syncnet

torch = pytest.importorskip("torch")
nn = torch.nn


def stack(kind, channels, features, kernels, strides, pads, pools):
    """Convolution, batch norm and ReLU six times, with pooling between."""
    volume = kind == "lip"
    conv, norm, pool = (
        (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
        if volume
        else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    )
    layers = []
    for index, width in enumerate(features):
        size = dict(stride=strides[index], padding=pads[index])
        layers += [conv(channels, width, kernels[index], **size), norm(width)]
        layers.append(nn.ReLU())
        if index in pools:
            window, stride, pad = pools[index]
            layers.append(pool(window, stride, pad))
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
        one = (1, 1, 1)
        wide = (1, 2, 2)
        self.netcnnlip = stack(
            "lip",
            3,
            (96, 256, 256, 256, 256, 512),
            ((5, 7, 7), (1, 5, 5), (1, 3, 3), (1, 3, 3), (1, 3, 3), (1, 6, 6)),
            (wide, wide, one, one, one, one),
            (0, (0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1), 0),
            {
                0: ((1, 3, 3), wide, 0),
                1: ((1, 3, 3), wide, (0, 1, 1)),
                4: ((1, 3, 3), wide, 0),
            },
        )
        self.netcnnaud = stack(
            "aud",
            1,
            (64, 192, 384, 256, 256, 512),
            (3, 3, 3, 3, 3, (5, 4)),
            (1,) * 6,
            (1, 1, 1, 1, 1, 0),
            {0: (1, 1, 0), 1: (3, (1, 2), 0), 4: (3, 2, 0)},
        )
        self.netfclip, self.netfcaud = head(), head()

    def faces(self, x):
        return self.netfclip(self.netcnnlip(x).flatten(1))

    def sounds(self, x):
        return self.netfcaud(self.netcnnaud(x).flatten(1))


@pytest.fixture(scope="module")
def reference():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Reference().eval()
    found = test_syncnet.checkpoint()
    model.load_state_dict({name: torch.tensor(value) for name, value in found.items()})
    yield model
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def params(reference, tmp_path_factory):
    """Parameters by way of a file like the public one."""
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    # The public file is from before PyTorch's zip files.
    torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=False)
    return syncnet.from_tensors(tensor_file.read(path))


def face_input():
    windows = test_syncnet.windows_of_faces(3)
    blue_first = np.ascontiguousarray(windows[..., ::-1].transpose(0, 4, 1, 2, 3))
    return windows, torch.tensor(blue_first).float()  # (B, 3, 5, 224, 224)


def sound_input():
    windows = test_syncnet.windows_of_sound(5)
    return windows, torch.tensor(windows).transpose(1, 2)[:, None]  # (B, 1, 13, 20)


@torch.inference_mode()
@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)])
def test_face_embeddings_agree(reference, params, dtype, limit):
    windows, x = face_input()
    expected = reference.faces(x).numpy()
    found = jax.jit(syncnet.faces, static_argnums=2)(params, windows, dtype)
    error = np.asarray(found) - expected
    print(f"faces {dtype.__name__}: {np.abs(error).max() / np.abs(expected).max():.1e}")
    assert np.abs(error).max() < limit * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max()


@torch.inference_mode()
@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)])
def test_sound_embeddings_agree(reference, params, dtype, limit):
    windows, x = sound_input()
    expected = reference.sounds(x).numpy()
    found = jax.jit(syncnet.sounds, static_argnums=2)(params, windows, dtype)
    error = np.asarray(found) - expected
    print(
        f"sounds {dtype.__name__}: {np.abs(error).max() / np.abs(expected).max():.1e}"
    )
    assert np.abs(error).max() < limit * np.abs(expected).max()


@torch.inference_mode()
def test_distances_agree():
    faces, sounds = test_syncnet.embeddings(40, 2)
    found = syncnet.lags(faces, sounds)
    padded = nn.functional.pad(torch.tensor(sounds), (0, 0, 15, 15))
    for row in (15, 20, 24):
        expected = nn.functional.pairwise_distance(
            torch.tensor(faces[[row]]).repeat(31, 1), padded[row : row + 31]
        )
        np.testing.assert_allclose(found[row], expected.numpy(), rtol=1e-5)
