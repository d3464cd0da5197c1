"""Tensors of files that PyTorch saved, read without it."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from extract.networks import torch_file
from tqa_jax import schema


class _Tensor:
    """Pickles as PyTorch's tensors do."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return _rebuild_tensor_v2, self.arguments


class _Storage(str):
    pass


class FloatStorage:
    pass


def _rebuild_tensor_v2():
    pass


_rebuild_tensor_v2.__module__ = "torch._utils"
FloatStorage.__module__ = "torch"


def save(path, value, storages):
    """Writes a file as `torch.save` does."""
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("u")}
    names["torch"].FloatStorage = FloatStorage
    names["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream, 2)
        pickler.persistent_id = lambda item: (
            ("storage", FloatStorage, str(item), "cpu", 6)
            if isinstance(item, _Storage)
            else None
        )
        pickler.dump(value)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", stream.getvalue())
        for name, numbers in storages.items():
            archive.writestr(f"x/data/{name}", np.asarray(numbers, "<f4").tobytes())
    return path


def test_a_file_of_tensors_is_read_and_any_other_is_one_line(tmp_path):
    numbers = {"0": range(6)}
    whole = {"a": _Tensor(_Storage("0"), 0, (2, 3), (3, 1), False, {})}
    part = {"b": _Tensor(_Storage("0"), 2, (3,), (1,), False, {})}
    found = torch_file.read(save(tmp_path / "a.pt", {"model": whole | part}, numbers))
    np.testing.assert_array_equal(found["model"]["a"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(found["model"]["b"], [2, 3, 4])
    turned = {"a": _Tensor(_Storage("0"), 0, (3, 2), (1, 3), False, {})}
    beyond = {"a": _Tensor(_Storage("0"), 4, (2, 3), (3, 1), False, {})}
    (tmp_path / "none.pt").write_bytes(b"no zip")
    for bad in (
        save(tmp_path / "turned.pt", turned, numbers),
        save(tmp_path / "beyond.pt", beyond, numbers),
        save(tmp_path / "run.pt", {"a": print}, {}),
        save(tmp_path / "lacks.pt", whole, {}),
        tmp_path / "none.pt",
        tmp_path / "absent.pt",
    ):
        with pytest.raises(schema.InputError, match="no file of tensors") as caught:
            torch_file.read(bad)
        assert "\n" not in str(caught.value)
