import dataclasses
import hashlib
import io
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from extract.backends import clip, hubert, resnet101, syncnet, wav2vec2
from extract.networks import tensors, weights
from tqa_jax import schema

REVISION = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "layer.bias": np.array([1.5, -2.0], np.float32),
    "count": np.array(3, np.int64),
}
CONTENT = safetensors.numpy.save(TENSORS)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CONFIG = {"model_type": "tiny", "hidden_size": 3}
WHOLE = {
    "model.safetensors": CONTENT,
    weights.CONFIG: CONFIG,
    weights.PREPROCESSOR: {"do_normalize": True},
}
SOURCE = weights.Source(
    "tiny",
    option="--tiny_weights",
    instead="--visual=nss",
    repository="someone/tiny-net",
    revision=REVISION,
    kind="tiny",
    preparation={"do_normalize": True},
)


def fill(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        value = json.dumps(value).encode() if isinstance(value, dict) else value
        (folder / name).write_bytes(value)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, offline; returns what puts a repository into it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(files, repository="someone/tiny-net", revision=REVISION):
        base = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        fill(base / "snapshots" / revision, files)

    return put


def refused(match, given=None, source=SOURCE):
    with pytest.raises(schema.InputError, match=match) as caught:
        source.find(given)
    assert "\n" not in str(caught.value)


def test_default_comes_from_the_cache_of_the_hub(hub):
    hub(WHOLE)
    found = SOURCE.find()
    assert found.config == CONFIG and found.preprocessor == {"do_normalize": True}
    assert found.sha256 == SHA256
    assert found.origin == f"someone/tiny-net@{REVISION}/model.safetensors"
    parts = json.dumps([SHA256, CONFIG, {"do_normalize": True}], sort_keys=True)
    assert found.checksum == hashlib.sha256(parts.encode()).hexdigest()
    for name, value in tensors.read(found.file).items():
        np.testing.assert_array_equal(value, TENSORS[name])


def test_offline_without_weights_says_what_to_do(hub):
    command = f"hf download someone/tiny-net --revision {REVISION}"
    advice = rf"no connection.*{command}.*--tiny_weights.*--visual=nss"
    refused(f"tiny needs model.safetensors of someone/tiny-net .*{advice}")
    hub({"model.safetensors": CONTENT})
    refused(f"tiny needs config.json of someone/tiny-net .*{advice}")


def test_another_file_than_the_pinned_one_is_refused(hub):
    hub(WHOLE)
    assert dataclasses.replace(SOURCE, sha256=SHA256).find().sha256 == SHA256
    other = dataclasses.replace(SOURCE, sha256="0" * 64)
    message = f"SHA-256 {SHA256}; expected {'0' * 64}"
    refused(message, source=other)
    # Asked for by name it is the same file, and refused as well.
    refused(message, f"someone/tiny-net@{REVISION}", other)


def test_a_repository_at_a_revision_can_be_given(hub):
    other = "f" * 40
    hub(WHOLE, "some.one/other_net", other)
    source = dataclasses.replace(SOURCE, sha256="0" * 64)
    found = source.find(f"some.one/other_net@{other}")
    assert found.origin == f"some.one/other_net@{other}/model.safetensors"
    given = f"some.one/other_net@{REVISION}"
    refused(f"of some.one/other_net at revision {REVISION}", given, source)
    for given in ("someone/tiny-net", "someone/tiny-net@main", "no/such/file"):
        refused(f"--tiny_weights is '{given}'; expected a local file, a local", given)


def test_a_local_folder_or_file_can_be_given(tmp_path):
    folder = fill(tmp_path / "a net's folder", WHOLE | {"pytorch_model.bin": b"x"})
    found = SOURCE.find(str(folder))
    assert found.file == folder / "model.safetensors" and found.config == CONFIG
    assert found.origin == "local file model.safetensors" and found.sha256 == SHA256
    fill(tmp_path, {"mine.bin": CONTENT, weights.CONFIG: CONFIG})
    found = SOURCE.find(str(tmp_path / "mine.bin"))
    assert found.config == CONFIG and found.preprocessor == {}
    assert found.origin == "local file mine.bin" and found.sha256 == SHA256


def test_bad_folders_and_settings_are_one_line(tmp_path):
    given = str(tmp_path)
    refused("expected model.safetensors or pytorch_model.bin", given)
    fill(tmp_path, {"model.safetensors": CONTENT})
    refused("needs config.json beside its weights, which local file mod", given)
    for bad in (b"{", b"\xff\xfe", b"[1]", b"[" * 100_000):
        fill(tmp_path, {weights.CONFIG: bad})
        refused("config.json", given)
    fill(tmp_path, {weights.CONFIG: CONFIG | {"model_type": "vast"}})
    refused("of kind 'vast' by its config.json; the backend tiny expects 'tin", given)
    fill(tmp_path, {**WHOLE, weights.PREPROCESSOR: {"do_normalize": False}})
    refused("do_normalize False; the backend tiny prepares .* with True", given)


def test_pins_are_whole():
    for source in (resnet101.SOURCE, clip.SOURCE, hubert.SOURCE, wav2vec2.SOURCE):
        assert len(source.revision) == 40 and len(source.sha256) in (0, 64)
        assert set(source.revision + source.sha256) <= set("0123456789abcdef")
    page, sha256 = syncnet.SOURCE.page, syncnet.SOURCE.sha256
    refused(f"{page} .*{sha256}.*--sync_weights.*--sync=corr", source=syncnet.SOURCE)


class Gadget:
    def __reduce__(self):
        return os.mkdir, ("it_ran",)


def unreadable(path):
    with pytest.raises(schema.InputError) as caught:
        tensors.read(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    cases = {
        "empty": b"",
        "text": b"these are no weights",
        "cut": CONTENT[:-3],
        "cut header": CONTENT[:20],
        "short": len(header).to_bytes(8, "little") + header + b"1234",
        "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
        "no tensor": safetensors.numpy.save({}),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": pickle.dumps(Gadget()),
        "numbers": pickle.dumps({"a": [1, 2]}),
    }
    for name, value in cases.items():
        (tmp_path / name).write_bytes(value)
        unreadable(tmp_path / name)
    unreadable(tmp_path / "gone")
    unreadable(tmp_path)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_pytorch_are_read_and_never_run(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    path, options = tmp_path / "net.model", {"_use_new_zipfile_serialization": zipped}
    values = {name: torch.tensor(value) for name, value in TENSORS.items()}
    values["half"] = torch.tensor([0.5, 3.0], dtype=torch.bfloat16)
    values["shared"] = torch.nn.Parameter(values["layer.weight"].t())
    torch.save({**values, "epoch": 3}, path, **options)
    found = tensors.read(path)
    assert set(found) == {*TENSORS, "half", "shared"}
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["shared"], TENSORS["layer.weight"].T)

    zeros = torch.zeros(2)
    for value in (
        {"a": zeros, "b": Gadget()},
        Gadget(),
        torch.nn.Linear(2, 2),
        [zeros],
    ):
        torch.save(value, path, **options)
        unreadable(path)
    assert not (tmp_path / "it_ran").exists()

    file, rng = io.BytesIO(), np.random.default_rng(0)
    torch.save({f"layer.{n}": torch.zeros(5, 7) for n in range(4)}, file, **options)
    data = file.getvalue()
    for trial in range(60):
        damaged = bytearray(data)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(1, len(data))]
        for place in rng.integers(0, min(len(damaged), 900), trial % 3 * 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            tensors.read(path)  # changed numbers are still numbers
        except schema.InputError as error:
            assert "\n" not in str(error)
