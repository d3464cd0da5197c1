"""TensorFlow and TFDS read our shards, and we read TensorFlow's (extra `tfds`)."""

import numpy as np
import pytest

from tests import test_records
from tqa_jax import records, tfrecord

pytestmark = pytest.mark.filterwarnings("ignore")
tf = pytest.importorskip("tensorflow", reason="needs the tfds extra")
tfds = pytest.importorskip("tensorflow_datasets", reason="needs the tfds extra")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tfds_reads_a_data_set_as_it_is(tmp_path, dtype):
    info = test_records.write(tmp_path / "d", dtype=dtype)
    builder = tfds.builder_from_directory(tmp_path / "d")
    assert builder.info.splits["train"].num_examples == 2
    for split in ("train", "test"):
        ours = list(records.read_split(tmp_path / "d", info, split))
        theirs = list(builder.as_dataset(split=split, shuffle_files=False))
        assert len(ours) == len(theirs)
        for clip, example in zip(ours, theirs, strict=True):
            assert example["clip"].numpy().decode() == clip.clip
            for name in clip.features:
                rows = example["features"][name].numpy()
                assert rows.dtype == dtype
                np.testing.assert_array_equal(
                    rows.astype(np.float32), clip.features[name]
                )
                np.testing.assert_array_equal(
                    example["frame_mask"][name].numpy().astype(bool),
                    clip.frame_mask[name],
                )
            for number, task in enumerate(info.schema.task_names):
                np.testing.assert_array_equal(
                    example["labels"][task].numpy(), clip.labels[number]
                )


def test_plain_tensorflow_reads_our_records(tmp_path):
    info = test_records.write(tmp_path / "d")
    file = tmp_path / "d" / info.splits["train"].shards[0].file
    for data, ours in zip(
        tf.data.TFRecordDataset(str(file)), tfrecord.read_all(file), strict=True
    ):
        assert data.numpy() == ours
        example = tf.train.Example.FromString(ours)
        assert example.SerializeToString(deterministic=True) == ours


def test_we_read_what_tensorflow_writes(tmp_path):
    path = tmp_path / "x.tfrecord"
    payloads = [b"", b"one", bytes(range(256)) * 40]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    assert list(tfrecord.read_all(path)) == payloads
    assert tfrecord.decode_example(
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "b": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
                    "f": tf.train.Feature(float_list=tf.train.FloatList(value=[1.5])),
                }
            )
        ).SerializeToString()
    ) == {"b": b"x", "f": 1.5}
