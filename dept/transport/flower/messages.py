"""What travels between the server and the silos of a federation, and nothing else.

A message is a :class:`Parcel`: a kind, a few named fields, numbers by name, and arrays by name.
:data:`KINDS` lists all of them. Both sides check each parcel against this table before they send
it and before they use it, so text, tokenizers, private parameters and counts of tokens have no
place to travel in. It imports only numpy, since the ClientApp starts a process for each message.

| kind | from | says |
|---|---|---|
| ``join`` | server | the settings that all must share |
| ``joined`` | silo | its name and sources, hash and shapes of the global model; TRIM's rows |
| ``start`` | server | asks for the global model as built |
| ``started`` | silo | the global model as built |
| ``round`` | server | the global model, the sources to train, and whose updates were averaged |
| ``update`` | silo | local models of its sources (or coded updates), and metrics it agrees to |
| ``embeddings`` | silo | after training, if it has chosen to share them: private embeddings |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

PROTOCOL = 2
"""Version of the messages; silos and server must have the same."""

Field = str | int | bool | list[str]


class Refused(ValueError):
    """A message, or a silo, that is not accepted, in one sentence."""


@dataclass(frozen=True)
class Parcel:
    """One message.

    Attributes:
        kind: a key of :data:`KINDS`.
        fields: values by name.
        metrics: numbers by name, ``<source>/<metric>``.
        arrays: arrays by name: ``<parameter>``, ``<source>/<parameter>``, or ``<source>`` for rows
            and for coded updates.
    """

    kind: str
    fields: dict[str, Field] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True)
class Kind:
    """What a parcel of one kind may have.

    Attributes:
        fields: type of each field; all must be there.
        dtypes: dtypes that its arrays may have; none if it has no arrays.
        metrics: whether it may have metrics.
    """

    fields: Mapping[str, type]
    dtypes: tuple[str, ...] = ()
    metrics: bool = False


KINDS: dict[str, Kind] = {
    "join": Kind(
        {
            "protocol": int,
            "terms": list,  # "<key> <JSON>" of each setting that all must share
            "sources": list,  # that silos may have; empty if they may bring others
        }
    ),
    "joined": Kind(
        {
            "protocol": int,
            "refusal": str,  # why this silo does not take part; empty if it does
            "silo": str,
            "sources": list,
            "tokenizer": str,  # hash of the global tokenizer, if the variant uses it
            "theta": str,  # hash of the global model that it was built with, or has
            "parameters": list,  # "<name> <rows>x<columns>" of each shared parameter
            "by_row": list,  # names of those that are averaged by token row
            "leaving": list,  # those of its sources that leave the federation
        },
        ("int32",),
    ),
    "start": Kind({}),
    "started": Kind({}, ("float32",)),
    "round": Kind(
        {
            "round": int,  # how many outer steps are done
            "rounds": int,  # how many there will be
            "nonce": str,  # of this round; a reply repeats it
            "drawn": list,  # sources of this silo to train
            "averaged": list,  # "<source> <round>": the last round that averaged its update
            "outside": list,  # sources of this silo that are not of the federation in this round
        },
        ("float32",),
    ),
    "update": Kind(
        {
            "round": int,
            "nonce": str,
            "refusal": str,
            "silo": str,
            "sources": list,  # whose local models are here
            "left_out": list,  # "<source> <reason>": trained, but not to be averaged
        },
        ("float32", "uint8"),
        metrics=True,
    ),
    "embeddings": Kind(
        {
            "round": int,
            "nonce": str,
            "silo": str,
            "sources": list,  # whose private parameters and token strings are here
        },
        ("float32", "uint8"),
        metrics=True,
    ),
}


def check(parcel: Parcel) -> Parcel:
    """Refuse a parcel that has anything but what :data:`KINDS` lists.

    Raises:
        Refused: it has another field, type, dtype or metric.
    """
    kind = KINDS.get(parcel.kind)
    if kind is None:
        raise Refused(f"a message of kind {parcel.kind!r:.40} is not part of a federation")
    if parcel.fields.keys() != kind.fields.keys():
        odd = sorted(parcel.fields.keys() ^ kind.fields.keys())
        raise Refused(
            f"a message {parcel.kind} has other fields than it should ({', '.join(odd)!s:.80}): "
            f"install the same version of this repository on both sides"
        )
    for name, value in parcel.fields.items():
        expected = kind.fields[name]
        fits = type(value) is expected
        if expected is list:
            fits = fits and all(type(entry) is str for entry in value)  # type: ignore[union-attr]
        if not fits:
            raise Refused(f"field {name} of a message {parcel.kind} is no {expected.__name__}")
    if parcel.metrics and not kind.metrics:
        raise Refused(f"a message {parcel.kind} has metrics, and may have none")
    for name, array in parcel.arrays.items():
        if array.dtype.name not in kind.dtypes:
            raise Refused(
                f"{name:.80} in a message {parcel.kind} is {array.dtype.name}, and may only be "
                f"{' or '.join(kind.dtypes) or 'absent'}"
            )
    return parcel


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], sender: str
) -> None:
    """Refuse arrays with other names or shapes than expected, or with a NaN or an infinity.

    Args:
        arrays: received arrays by name.
        expected: shapes by name.
        sender: who sent them, for the sentence.

    Raises:
        Refused: they are not what was expected.
    """
    if arrays.keys() != expected.keys():
        odd = sorted(arrays.keys() ^ expected.keys())[0]
        which = "lacks" if odd in expected else "has an unknown"
        raise Refused(f"the message of {sender} {which} array {odd:.80}")
    for name, shape in expected.items():
        if arrays[name].shape != tuple(shape):
            raise Refused(
                f"{name} of {sender} has shape {arrays[name].shape}, and {tuple(shape)} is "
                f"expected: the models differ"
            )
        if arrays[name].dtype.kind == "f" and not bool(np.isfinite(arrays[name]).all()):
            raise Refused(f"{name} of {sender} holds a NaN or an infinity")


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are finite numbers; others are dropped, since they are only shown."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def shapes_to_fields(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names and shapes as a field."""
    return [f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]


def shapes_of_fields(entries: list[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes from a field.

    Raises:
        Refused: an entry is not ``<name> <n>x<m>``.
    """
    shapes = {}
    for entry in entries:
        name, _, sizes = entry.rpartition(" ")
        numbers = sizes.split("x") if sizes else []
        if not name or not all(n.isdigit() and len(n) < 12 for n in numbers):
            raise Refused(f"{entry!r:.80} is no name and shape of a parameter")
        shapes[name] = tuple(map(int, numbers))
    return shapes


def pairs(entries: list[str]) -> dict[str, str]:
    """A field of ``<name> <value>`` entries, by name."""
    return {name: value for name, _, value in (entry.partition(" ") for entry in entries)}
