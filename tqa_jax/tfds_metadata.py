"""The two JSON files that make a data set folder a TFDS data set.

Written here, not by TFDS, so that making a data set needs neither TensorFlow nor
TFDS; the tests read the result back with `tfds.builder_from_directory`.
"""

from collections.abc import Mapping
from typing import Any

from tqa_jax import schema


def describe(info: schema.DatasetInfo) -> dict[str, dict[str, Any]]:
    """Describes a data set the way TFDS does, for `tfds.builder_from_directory`.

    Returns:
        Contents of `features.json` and `dataset_info.json` by file name.
    """
    module = "tensorflow_datasets.core.features"

    def tensor(dtype: str, encoding: str, *shape: int) -> dict[str, Any]:
        dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
        return {
            "pythonClassName": f"{module}.tensor_feature.Tensor",
            "tensor": {"dtype": dtype, "encoding": encoding, "shape": dimensions},
        }

    def group(features: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "pythonClassName": f"{module}.features_dict.FeaturesDict",
            "featuresDict": {"features": dict(features)},
        }

    text = {"pythonClassName": f"{module}.text_feature.Text", "text": {}}
    widths = info.schema.widths
    features = group(
        {
            "clip": text,
            "source": text,
            "features": group(
                {n: tensor(info.dtype, "bytes", -1, w) for n, w in widths.items()}
            ),
            "frame_mask": group({n: tensor("uint8", "bytes", -1) for n in widths}),
            "labels": group(
                {n: tensor("float32", "none") for n in info.schema.task_names}
            ),
        }
    )
    splits = [
        {
            "name": name,
            "filepathTemplate": "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
            "numBytes": str(sum(shard.bytes for shard in split.shards)),
            "shardLengths": [str(shard.clips) for shard in split.shards],
        }
        for name, split in info.splits.items()
    ]
    return {
        "features.json": features,
        "dataset_info.json": {
            "name": info.name,
            "version": "1.0.0",
            "fileFormat": "tfrecord",
            "splits": splits,
        },
    }
