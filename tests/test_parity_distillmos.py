"""DistillMOS against the package, with its weights."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from extract.networks import distillmos, torch_file
from tests import test_distillmos

torch = pytest.importorskip("torch")
if importlib.util.find_spec("distillmos") is None:
    pytest.skip("needs the package distillmos", allow_module_level=True)


@pytest.fixture(scope="module")
def package():
    """The package's network; it loads torchaudio, but only to read files."""
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        sqa = pytest.importorskip("distillmos.sqa")
    finally:
        del sys.modules["torchaudio"]
        if before is not None:
            sys.modules["torchaudio"] = before
    return sqa.ConvTransformerSQAModel().eval()


def test_our_reader_gives_the_tensors_of_pytorchs(package):
    found = torch_file.read(sys.modules["distillmos.sqa"].DEFAULT_WEIGHTS_CHKPT)
    theirs = package.state_dict()
    assert found["model"].keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(found["model"][name], value.numpy())


def test_opinion_and_embedding_equal_the_packages(package):
    seen = []
    package.transformer_pool_attn.pool.linear3.register_forward_hook(
        lambda layer, inputs, output: seen.append(inputs[0].numpy())
    )
    rng = np.random.default_rng(0)
    noise = rng.normal(size=distillmos.SAMPLES).astype(np.float32)
    samples = np.stack(
        [test_distillmos.voice(7.68), noise, 1e-3 * noise, np.zeros_like(noise)]
    )
    with torch.inference_mode():
        expected = package(torch.tensor(samples)).numpy()
    params = distillmos.from_tensors(package_tensors(package))
    found = np.asarray(distillmos.DistillMos().apply(params, samples))
    np.testing.assert_allclose(found[:, :1], expected, atol=1e-4)
    np.testing.assert_allclose(found[:, 1:], seen[0], atol=1e-3)


def test_reference_numbers_of_the_other_tests_are_the_packages(package):
    for seconds, opinion in test_distillmos.OPINIONS.items():
        samples = torch.tensor(test_distillmos.voice(seconds)[None])
        with torch.inference_mode():
            assert abs(float(package(samples)) - opinion) < 1e-4


def package_tensors(package):
    return {name: value.numpy() for name, value in package.state_dict().items()}
