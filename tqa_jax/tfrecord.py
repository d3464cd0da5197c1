"""TFRecord files and `tf.train.Example` messages without TensorFlow.

The framing is TensorFlow's: length (uint64), masked CRC-32C of the length, payload,
masked CRC-32C of the payload, all little-endian. Both checksums are always verified,
the length's before anything is allocated, so a damaged file gives an error and never
wrong data.

References:
    TensorFlow, `tensorflow/core/lib/io/record_writer.h` and
    `tensorflow/core/example/{example,feature}.proto`.
"""

import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tqa_jax import schema

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_OVERHEAD = _LENGTH.size + 2 * _CRC.size


def _example_class() -> type[message.Message]:
    """Builds the class of `tensorflow.Example` in a pool of its own.

    A pool of its own, since TensorFlow registers the same names in the default one
    and both must be able to live in a process.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tqa_jax/example.proto", package="tensorflow", syntax="proto3"
    )
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(
            name="value", number=1, label=field.LABEL_REPEATED, type=kind
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes", "float", "int64"), start=1):
        feature.field.add(
            name=f"{name}_list",
            number=number,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=f".tensorflow.{name.title()}List",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(
        name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING
    )
    entry.field.add(
        name="value",
        number=2,
        label=field.LABEL_OPTIONAL,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Feature",
    )
    features.field.add(
        name="feature",
        number=1,
        label=field.LABEL_REPEATED,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
    )
    file.message_type.add(name="Example").field.add(
        name="features",
        number=1,
        label=field.LABEL_OPTIONAL,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.Example")
    )


_Example = _example_class()


def encode_example(values: Mapping[str, bytes | float]) -> bytes:
    """Serialises a `tf.train.Example` with one value a feature.

    Args:
        values: bytes become a `bytes_list`, numbers a `float_list`, of length one.
    """
    example = _Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> dict[str, bytes | float]:
    """Reads what `encode_example` wrote.

    Raises:
        InputError: when `data` is no such message.
    """
    try:
        example = _Example.FromString(data)
    except message.DecodeError as error:
        raise schema.InputError(f"record is no tf.train.Example: {error}") from error
    values = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found = getattr(feature, kind).value if kind else ()
        if kind not in ("bytes_list", "float_list") or len(found) != 1:
            raise schema.InputError(
                f"record feature {name!r} must hold one bytes or float value"
            )
        values[name] = found[0]
    return values


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write(file: BinaryIO, data: bytes) -> int:
    """Appends one record to an open file and returns the bytes it takes."""
    length = _LENGTH.pack(len(data))
    file.write(length)
    file.write(_CRC.pack(_masked_crc(length)))
    file.write(data)
    file.write(_CRC.pack(_masked_crc(data)))
    return len(data) + _OVERHEAD


def index(path: pathlib.Path) -> np.ndarray:
    """Finds the records of a file without reading them.

    Returns:
        Offset and length of each payload, int64 (records, 2).

    Raises:
        InputError: naming the file and the byte where its framing breaks.
    """
    spans = []
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < size:
            head = file.read(_LENGTH.size + _CRC.size)
            if len(head) < _LENGTH.size + _CRC.size:
                raise schema.InputError(f"{path} is truncated at byte {position}")
            (length,) = _LENGTH.unpack_from(head)
            (crc,) = _CRC.unpack_from(head, _LENGTH.size)
            if crc != _masked_crc(head[: _LENGTH.size]):
                raise schema.InputError(
                    f"{path} is corrupt at byte {position}: checksum of a record's "
                    "length does not match"
                )
            if position + length + _OVERHEAD > size:
                raise schema.InputError(f"{path} is truncated at byte {size}")
            spans.append((position + len(head), length))
            position += length + _OVERHEAD
            file.seek(position)
    return np.array(spans, np.int64).reshape(-1, 2)


def read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Reads the record at a place that `index` found.

    Raises:
        InputError: when the payload does not match its checksum.
    """
    file.seek(offset)
    data = file.read(length)
    tail = file.read(_CRC.size)
    if len(data) < length or len(tail) < _CRC.size:
        raise schema.InputError(f"{file.name} is truncated at byte {offset}")
    if _CRC.unpack(tail)[0] != _masked_crc(data):
        raise schema.InputError(
            f"{file.name} is corrupt at byte {offset}: checksum of a record does not "
            "match; make the data set again or copy it again"
        )
    return data


def read_all(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the payloads of a file in order; see `read` for the errors."""
    spans = index(path)
    with path.open("rb") as file:
        for offset, length in spans.tolist():
            yield read(file, offset, length)
