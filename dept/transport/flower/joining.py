"""What a silo says when it joins, and whether it fits the federation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dept.transport.flower.messages import PROTOCOL, Parcel, Refused, shapes_of_fields


@dataclass
class Member:
    """A silo that has joined.

    Attributes:
        name: its name.
        node: its number in Flower.
        sources: its sources.
        rows: for TRIM, int32[n] by source.
        leaving: those of its sources that leave the federation.
        asked: round that it was last asked for and has not answered; ``None`` if it is free.
        failing: when its trainer last began not to answer; ``None`` if it answers.
        is_stale: whether its trainer may be another one by now, so that it has to join again.
    """

    name: str
    node: int
    sources: tuple[str, ...]
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    leaving: tuple[str, ...] = ()
    asked: int | None = None
    failing: float | None = None
    is_stale: bool = False


@dataclass(frozen=True)
class Model:
    """What all silos must have in common, as the first of them said it.

    Attributes:
        shapes: shapes of the global model by name.
        by_row: names of the parameters that are averaged by token row.
        tokenizer: hash of the global tokenizer; empty if the variant does not use it.
        theta: hash of the global model as built.
    """

    shapes: Mapping[str, tuple[int, ...]]
    by_row: tuple[str, ...]
    tokenizer: str
    theta: str


def check_joined(
    parcel: Parcel,
    *,
    others: Sequence[Member],
    online: Collection[int],
    sources: Sequence[str] | None,
    model: Model | None,
    is_new: bool,
) -> Model:
    """Compare a silo with the others; the first one sets what they have in common.

    Args:
        parcel: its ``joined``.
        others: the silos that have joined from other nodes.
        online: numbers of the nodes that are connected.
        sources: the sources that silos may have; ``None`` for any, which may leave, too.
        model: what the others have in common; ``None`` if it is the first.
        is_new: whether the run has no round behind it, so that models as built are compared.

    Returns:
        What all have in common.

    Raises:
        Refused: it cannot take part.
    """
    fields: dict[str, Any] = dict(parcel.fields)
    if fields["protocol"] != PROTOCOL:
        raise Refused(f"its messages have version {fields['protocol']}, ours {PROTOCOL}")
    ours = Model(
        shapes_of_fields(fields["parameters"]),
        tuple(fields["by_row"]),
        fields["tokenizer"],
        fields["theta"],
    )
    check_sources(fields["sources"], fields["leaving"], sources)
    for other in others:
        if other.name == fields["silo"] and other.node in online:
            raise Refused(f"another node is connected as {other.name}: give each its own name")
        shared = set(other.sources) & set(fields["sources"])
        if shared and other.name != fields["silo"]:
            raise Refused(f"source {sorted(shared)[0]} is also one of silo {other.name}")
    model = model or ours
    if ours.tokenizer != model.tokenizer:
        raise Refused(
            "its global tokenizer differs from that of the first silo: use the same files"
        )
    if ours.shapes != model.shapes or ours.by_row != model.by_row:
        raise Refused(
            "its global parameters have other names or shapes than those of the first silo"
        )
    if is_new and ours.theta != model.theta:
        raise Refused(
            "its global model differs from that of the first silo: use the same seed and the "
            "same versions, or remove its folder of an earlier run of this name"
        )
    _check_rows(parcel.arrays, fields["sources"], model)
    return model


def check_sources(
    own: Sequence[str], leaving: Sequence[str], allowed: Sequence[str] | None
) -> None:
    """Refuse sources that a silo may not have, or not take out; both sides check it.

    Args:
        own: the sources of the silo.
        leaving: those of them that leave.
        allowed: the sources that silos may have; ``None`` for any, which may leave, too.

    Raises:
        Refused: it cannot take part.
    """
    if not own or len(set(own)) != len(own) or not all(map(_is_name, own)):
        raise Refused(f"its sources {own!s:.80} are no list of different names")
    if not set(leaving) <= set(own):
        raise Refused("it takes out sources that are not its own")
    change = "the server has algorithms.dept.allow_source_changes: false"
    if allowed is not None and not set(own) <= set(allowed):
        raise Refused(f"its sources {own!s:.80} are not of this federation, and {change}")
    if allowed is not None and leaving:
        raise Refused(f"it takes out {', '.join(leaving)!s:.80}, and {change}")


def _is_name(text: str) -> bool:
    return bool(text) and all(c.isalnum() or c in "-_." for c in text)


def _check_rows(rows: Mapping[str, np.ndarray], sources: list[str], model: Model) -> None:
    if rows.keys() != (set(sources) if model.by_row else set()):
        raise Refused("the token rows of its sources are missing")
    heights = [model.shapes[name][0] for name in model.by_row]
    for source, ids in rows.items():
        fits = ids.ndim == 1 and len(ids) and bool((np.diff(ids) > 0).all())
        if not fits or ids[0] < 0 or any(ids[-1] >= height for height in heights):
            raise Refused(f"the token rows of {source} are not ascending ids of the embedding")
