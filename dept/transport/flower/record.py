"""A parcel as the content of a message of Flower."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dept.transport.flower.messages import KINDS, Parcel, Refused, check

BYTES = "bytes"
"""Name of our serialisation of arrays: their numbers as they are in memory, little-endian."""


def to_record(parcel: Parcel) -> RecordDict:
    """The content of a message.

    Raises:
        Refused: the parcel has anything that may not travel.
    """
    check(parcel)
    # Flower cannot know the type of an empty list.
    fields = {n: json.dumps(v) if isinstance(v, list) else v for n, v in parcel.fields.items()}
    about = ConfigRecord({"kind": parcel.kind, **fields})
    arrays = {
        name: Array(array.dtype.name, tuple(array.shape), BYTES, array.tobytes())
        for name, array in parcel.arrays.items()
    }
    return RecordDict(
        {
            "about": about,
            "metrics": MetricRecord(dict(parcel.metrics)),
            "arrays": ArrayRecord(arrays),
        }
    )


def of_record(record: RecordDict) -> Parcel:
    """The parcel in a message; arrays are read from plain bytes, never unpickled.

    Raises:
        Refused: it is no message of ours.
    """
    if set(record) != {"about", "metrics", "arrays"}:
        raise Refused(f"a message has records {', '.join(record)!s:.80}, and is not one of ours")
    fields = dict(record.config_records["about"])
    kind = str(fields.pop("kind", ""))
    for name, expected in KINDS[kind].fields.items() if kind in KINDS else ():
        if expected is list and isinstance(fields.get(name), str):
            fields[name] = _listed(name, fields[name])
    arrays = {
        name: array_of(name, a.dtype, a.shape, a.data)
        for name, a in record.array_records["arrays"].items()
        if a.stype == BYTES
    }
    metrics = {name: float(value) for name, value in record.metric_records["metrics"].items()}
    if len(arrays) != len(record.array_records["arrays"]):
        raise Refused("an array of a message is serialised in another way than ours")
    return check(Parcel(kind, fields, metrics, arrays))


def array_of(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    """An array from its bytes.

    Args:
        name: its name, for the error.
        dtype: ``float32``, ``int32`` or ``uint8``.
        shape: its shape.
        data: its numbers, little-endian.

    Raises:
        Refused: the bytes are more or fewer than the shape says, or the dtype is another.
    """
    if dtype not in ("float32", "int32", "uint8"):
        raise Refused(f"{name:.80} is {dtype!r:.20}, which no message of a federation has")
    kind = np.dtype(dtype).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != len(data):
        raise Refused(f"{name:.80} has {len(data)} bytes, which do not fit its shape {shape}")
    return np.frombuffer(bytearray(data), kind).reshape(shape).astype(dtype, copy=False)


def _listed(name: str, text: Any) -> list[str]:
    try:
        return list(json.loads(text))
    except (ValueError, TypeError):
        raise Refused(f"field {name} of a message is no list") from None
