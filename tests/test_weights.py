import dataclasses
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from extract.backends import clip, hubert, resnet101, syncnet, wav2vec2
from extract.networks import tensor_file, weights
from tqa_jax import schema

REVISION = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "layer.bias": np.array([1.5, -2.0], np.float32),
    "count": np.array(3, np.int64),
}
CONFIG = {"model_type": "tiny", "hidden_size": 3}
SOURCE = weights.Source(
    "tiny",
    option="--tiny_weights",
    instead="--visual=nss",
    repository="someone/tiny-net",
    revision=REVISION,
)


def content():
    return safetensors.numpy.save(TENSORS)


def fill(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        value = json.dumps(value).encode() if isinstance(value, dict) else value
        (folder / name).write_bytes(value)
    return folder


def whole():
    return {
        "model.safetensors": content(),
        weights.CONFIG: CONFIG,
        weights.PREPROCESSOR: {"do_normalize": True},
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, offline; returns what puts a repository into it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(files, repository="someone/tiny-net", revision=REVISION):
        base = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        fill(tmp_path / "files", files)
        snapshot = base / "snapshots" / revision
        (base / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for name in files:
            data = (tmp_path / "files" / name).read_bytes()
            blob = base / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))

    return put


def message(*arguments, match=None):
    with pytest.raises(schema.InputError, match=match) as caught:
        weights.find(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_default_comes_from_the_cache_of_the_hub(hub):
    hub(whole())
    found = weights.find(SOURCE)
    assert found.config == CONFIG and found.preprocessor == {"do_normalize": True}
    assert found.sha256 == hashlib.sha256(content()).hexdigest()
    assert found.origin == f"someone/tiny-net@{REVISION}/model.safetensors"
    for name, value in tensor_file.read(found.file).items():
        np.testing.assert_array_equal(value, TENSORS[name])


def test_offline_without_weights_says_what_to_do(hub):
    text = message(SOURCE)
    for part in (
        "tiny needs model.safetensors of someone/tiny-net",
        f"hf download someone/tiny-net --revision {REVISION}",
        "--tiny_weights",
        "--visual=nss",
        "no connection",
    ):
        assert part in text


def test_offline_with_half_of_the_files_names_the_missing_one(hub):
    hub({name: value for name, value in whole().items() if name != weights.CONFIG})
    assert "tiny needs config.json of someone/tiny-net" in message(SOURCE)


def test_another_file_than_the_pinned_one_is_refused(hub):
    hub(whole())
    good = hashlib.sha256(content()).hexdigest()
    pinned = dataclasses.replace(SOURCE, sha256=good)
    assert weights.find(pinned).sha256 == good
    other = dataclasses.replace(SOURCE, sha256="0" * 64)
    text = message(other)
    assert f"SHA-256 {good}; expected {'0' * 64}" in text
    # Asked for by name it is the same file, and refused as well.
    assert "SHA-256" in message(other, f"someone/tiny-net@{REVISION}")


def test_a_repository_at_a_revision_can_be_given(hub):
    other = "f" * 40
    hub(whole(), "some.one/other_net", other)
    source = dataclasses.replace(SOURCE, sha256="0" * 64)
    found = weights.find(source, f"some.one/other_net@{other}")
    assert found.origin == f"some.one/other_net@{other}/model.safetensors"
    text = message(source, f"some.one/other_net@{REVISION}")
    assert f"of some.one/other_net at revision {REVISION}" in text


@pytest.mark.parametrize(
    "given", ["someone/tiny-net", "someone/tiny-net@main", "no/such/file", "gone.bin"]
)
def test_what_is_neither_here_nor_pinned_is_refused(hub, given):
    assert repr(given) in message(SOURCE, given, match="expected a local file, a local")


def test_a_folder_in_the_hubs_format_can_be_given(tmp_path):
    folder = fill(tmp_path / "a net's folder", whole())
    found = weights.find(SOURCE, str(folder))
    assert found.file == folder / "model.safetensors" and found.config == CONFIG
    assert found.origin == "local file model.safetensors"
    assert found.sha256 == hashlib.sha256(content()).hexdigest()


def test_a_file_brings_the_settings_beside_it(tmp_path):
    folder = fill(tmp_path, {"mine.safetensors": content(), weights.CONFIG: CONFIG})
    found = weights.find(SOURCE, str(folder / "mine.safetensors"))
    assert found.config == CONFIG and found.preprocessor == {}
    assert found.origin == "local file mine.safetensors"
    bare = dataclasses.replace(SOURCE, settings=())
    assert weights.find(bare, str(folder / "mine.safetensors")).config == {}


def test_safetensors_are_taken_before_pickles(tmp_path):
    files = {"pytorch_model.bin": b"x", "model.safetensors": content()}
    found = weights.find(SOURCE, str(fill(tmp_path, files)))
    assert found.file.name == "model.safetensors"


def test_a_file_that_changes_has_another_checksum(tmp_path):
    path = fill(tmp_path, {"a.safetensors": content()}) / "a.safetensors"
    before = weights.find(SOURCE, str(path)).sha256
    path.write_bytes(content() + b" ")
    expected = hashlib.sha256(content() + b" ").hexdigest()
    assert weights.find(SOURCE, str(path)).sha256 == expected != before
    assert weights.sha256(path) == expected
    with pytest.raises(schema.InputError, match="gone cannot be read: No such file"):
        weights.sha256(tmp_path / "gone")


def test_bad_folders_and_settings_are_one_line(tmp_path):
    text = message(SOURCE, str(tmp_path))
    assert "expected model.safetensors or pytorch_model.bin" in text
    for bad in (b"{", b"\xff\xfe", b"[1]", b"[" * 100_000):
        fill(tmp_path, {"model.safetensors": content(), weights.CONFIG: bad})
        assert "config.json" in message(SOURCE, str(tmp_path))


def test_weights_to_be_fetched_by_hand_say_where(tmp_path):
    text = message(syncnet.SOURCE)
    assert syncnet.SOURCE.page in text and syncnet.SOURCE.sha256 in text
    assert "--sync_weights" in text and "--sync=correlation" in text


def test_pins_are_whole():
    for source in (resnet101.SOURCE, clip.SOURCE, hubert.SOURCE, wav2vec2.SOURCE):
        assert len(source.revision) == 40 and len(source.sha256) in (0, 64)
        assert set(source.revision + source.sha256) <= set("0123456789abcdef")


def test_half_precision_comes_as_float32(tmp_path):
    exact = np.array([1.5, -0.25, 300.0], np.float32)
    for kind in (ml_dtypes.bfloat16, np.float16, np.float64):
        path = tmp_path / "a.safetensors"
        safetensors.numpy.save_file({"a": exact.astype(kind)}, path)
        value = tensor_file.read(path)["a"]
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, exact)


class Gadget:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = content()
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    cases = {
        "empty": b"",
        "text": b"these are no weights",
        "cut": data[:-3],
        "cut header": data[:20],
        "short": len(header).to_bytes(8, "little") + header + b"1234",
        "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
        "no tensor": safetensors.numpy.save({}),
        "page": b"<!doctype html><html>404</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": pickle.dumps(Gadget()),
        "numbers": pickle.dumps({"a": [1, 2]}),
    }
    for name, value in cases.items():
        path = tmp_path / name
        path.write_bytes(value)
        with pytest.raises(schema.InputError) as caught:
            tensor_file.read(path)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "it_ran").exists()
    with pytest.raises(schema.InputError, match="cannot be read"):
        tensor_file.read(tmp_path / "gone")
    with pytest.raises(schema.InputError, match="cannot be read"):
        tensor_file.read(tmp_path)


def test_a_pickle_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(schema.InputError, match="pip install torch.*safetensors"):
        tensor_file.read(tmp_path / "net.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_pytorch_are_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in TENSORS.items()}
    tensors["half"] = torch.tensor([0.5, 3.0], dtype=torch.bfloat16)
    tensors["shared"] = torch.nn.Parameter(tensors["layer.weight"].t())
    path = tmp_path / "net.model"
    torch.save({**tensors, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    found = tensor_file.read(path)
    assert set(found) == {*TENSORS, "half", "shared"}
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["shared"], TENSORS["layer.weight"].T)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for value in (
        {"a": torch.zeros(2), "b": Gadget()},
        Gadget(),
        torch.nn.Linear(2, 2),
        [torch.zeros(2)],
    ):
        torch.save(value, "net.bin", _use_new_zipfile_serialization=zipped)
        with pytest.raises(schema.InputError) as caught:
            tensor_file.read("net.bin")
        assert "net.bin" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_cut_and_changed_checkpoints_are_one_line(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    path = tmp_path / "net.bin"
    for zipped in (True, False):
        file = io.BytesIO()
        tensors = {f"layer.{n}": torch.zeros(5, 7) for n in range(4)}
        torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
        data = file.getvalue()
        for trial in range(150):
            damaged = bytearray(data)
            if trial % 3 == 0:
                damaged = damaged[: rng.integers(1, len(data))]
            for place in rng.integers(0, min(len(damaged), 900), trial % 3 * 4):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                tensor_file.read(path)  # changed numbers are still numbers
            except schema.InputError as error:
                assert "\n" not in str(error)


def test_a_command_in_another_process_works_offline(tmp_path):
    """By the environment, as users have it, instead of patched constants."""
    pytest.importorskip("huggingface_hub")
    code = (
        "from extract.backends import resnet101;"
        "from extract.networks import weights; weights.find(resnet101.SOURCE)"
    )
    settings = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "hf download microsoft/resnet-101 --revision 5b977138" in last
