"""A parcel on the Unix socket between the ClientApp and the trainer of the same silo.

A frame is the length of its header (8 bytes, big-endian), the header as JSON, and the bytes of all
arrays in the order of the header.
"""

from __future__ import annotations

import json
import math
import socket
import struct

import numpy as np

from dept.transport.flower.messages import Parcel, Refused, check

HEADER_LIMIT = 1 << 22
"""The most bytes of a header: names, shapes and fields."""

_DTYPES = ("float32", "int32", "uint8")
_PIECE = 1 << 20


def send(connection: socket.socket, parcel: Parcel) -> None:
    """Send a parcel.

    Raises:
        OSError: the other side is gone.
        Refused: the parcel has anything that may not travel.
    """
    check(parcel)
    header = {
        "kind": parcel.kind,
        "fields": parcel.fields,
        "metrics": parcel.metrics,
        "arrays": [[n, a.dtype.name, list(a.shape)] for n, a in parcel.arrays.items()],
    }
    text = json.dumps(header).encode()
    connection.sendall(struct.pack(">Q", len(text)) + text)
    for array in parcel.arrays.values():
        connection.sendall(np.ascontiguousarray(array).astype(array.dtype, copy=False).data)


def receive(connection: socket.socket, limit: int) -> Parcel:
    """Receive a parcel.

    Args:
        connection: the socket.
        limit: the most bytes of arrays to accept.

    Raises:
        OSError: the other side is gone.
        Refused: it is larger than ``limit``, or is no message of ours.
    """
    (length,) = struct.unpack(">Q", _exactly(connection, 8))
    if length > HEADER_LIMIT:
        raise Refused(f"the header of a message has {length} bytes, and {HEADER_LIMIT} at most")
    try:
        header = json.loads(_exactly(connection, length))
        listed = [(str(n), str(d), tuple(int(i) for i in s)) for n, d, s in header["arrays"]]
        fields, metrics = dict(header["fields"]), dict(header["metrics"])
        kind = str(header["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"a message cannot be read ({error})") from None
    sizes = []
    for name, dtype, shape in listed:
        if dtype not in _DTYPES or any(i < 0 for i in shape):
            raise Refused(f"{name:.80} is no array of a federation")
        sizes.append(math.prod(shape) * np.dtype(dtype).itemsize)
    if sum(sizes) > limit:
        raise Refused(f"a message has {sum(sizes):,} bytes, and {limit:,} at most are expected")
    arrays = {
        name: np.frombuffer(_exactly(connection, size), dtype).reshape(shape)
        for (name, dtype, shape), size in zip(listed, sizes, strict=True)
    }
    return check(Parcel(kind, fields, metrics, arrays))


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = connection.recv_into(view[done:], min(count - done, _PIECE))
        if not got:
            raise ConnectionError("the other side closed the connection")
        done += got
    return data
