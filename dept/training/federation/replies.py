"""The replies of silos to one round: what they must hold, and what is written about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dept.checkpoint.shared_embedding import SharedEmbedding
from dept.method.averaging import Share
from dept.method.compression import Compression
from dept.training.federation.server_files import Plan
from dept.transport.flower.joining import Member, Model
from dept.transport.flower.messages import Parcel, Refused, check_arrays


@dataclass
class Replies:
    """The replies to one round.

    Attributes:
        updates: the update of each silo, by name.
        shares: share of each source with an update, as its silo had it then.
        refused: silos that refused, or whose update is not accepted.
        asked: silos that were asked.
    """

    updates: dict[str, Parcel] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    @property
    def left_out(self) -> dict[str, str]:
        """Sources that were trained and are not to be averaged, with the reason."""
        entries = [e for u in self.updates.values() for e in u.fields["left_out"]]  # type: ignore[union-attr]
        return {source: why for source, _, why in (entry.partition(" ") for entry in entries)}

    @property
    def sources(self) -> list[str]:
        """Sources whose updates are there."""
        return [s for u in self.updates.values() for s in u.fields["sources"]]  # type: ignore[union-attr]

    def updates_by_source(self) -> dict[str, dict[str, Tensor]]:
        """The local models (or coded updates, under the name of the source) by source and name."""
        return {
            source: {
                name.removeprefix(f"{source}/"): torch.from_numpy(array)
                for name, array in parcel.arrays.items()
                if name == source or name.startswith(f"{source}/")
            }
            for parcel in self.updates.values()
            for source in parcel.fields["sources"]  # type: ignore[union-attr]
        }


def check_update(
    parcel: Parcel, plan: Plan, member: Member, model: Model, compression: Compression | None
) -> None:
    """Refuse an update that is not exactly of what was drawn.

    Args:
        parcel: the update.
        plan: the round.
        member: the silo.
        model: what silos have in common.
        compression: compression of updates.

    Raises:
        Refused: its sources, or names, shapes, dtypes or values of its arrays are others.
    """
    if parcel.fields["refusal"]:
        raise Refused(str(parcel.fields["refusal"]))
    drawn = [s for s in plan.drawn if s in member.sources]
    sources: list[str] = list(parcel.fields["sources"])  # type: ignore[arg-type]
    out = [entry.partition(" ")[0] for entry in parcel.fields["left_out"]]  # type: ignore[union-attr]
    if parcel.fields["silo"] != member.name or sorted(sources + out) != sorted(drawn):
        raise Refused("it is not of the sources that were drawn")
    if any(key.partition("/")[0] not in member.sources for key in parcel.metrics):
        raise Refused("it has metrics of sources that are not its own")
    expected: dict[str, tuple[int, ...]] = {}
    for source in sources:
        like = like_local(member, source, model)
        if compression is not None:
            rows = share_of(member, source, model).rows
            expected[source] = (compression.size(like, rows),)
        else:
            expected |= {f"{source}/{n}": tuple(v.shape) for n, v in like.items()}
    check_arrays(parcel.arrays, expected, f"silo {member.name}")
    kind = "float32" if compression is None else "uint8"
    if any(array.dtype.name != kind for array in parcel.arrays.values()):
        raise Refused(f"its arrays are not {kind}")


def embeddings_of(parcel: Parcel, member: Member) -> dict[str, SharedEmbedding]:
    """The private embeddings that a silo shares, by source.

    Raises:
        Refused: they are not of its sources, or no embeddings.
    """
    sources: list[str] = list(parcel.fields["sources"])  # type: ignore[arg-type]
    named = {name.partition("/")[0] for name in parcel.arrays}
    if not set(sources) <= set(member.sources) or named != set(sources):
        raise Refused("it shares embeddings of sources that are not its own")
    try:
        return {source: SharedEmbedding.of_arrays(parcel.arrays, source) for source in sources}
    except ValueError as error:
        raise Refused(str(error)) from None


def without_embeddings(parcel: Parcel) -> Parcel:
    """The rest of a message with embeddings, as an update without sources."""
    fields = {name: parcel.fields[name] for name in ("round", "nonce", "silo")}
    fields |= {"refusal": "", "sources": [], "left_out": []}
    return Parcel("update", fields, parcel.metrics)


def like_local(member: Member, source: str, model: Model) -> dict[str, Tensor]:
    """Tensors with the names and shapes of the local model of a source, without values."""
    count = len(member.rows.get(source, ()))
    return {
        name: torch.empty((count, *shape[1:]) if name in model.by_row else shape, device="meta")
        for name, shape in model.shapes.items()
    }


def share_of(member: Member, source: str, model: Model) -> Share:
    """The share of a source in the average."""
    rows = {n: torch.from_numpy(member.rows[source].astype("int64")) for n in model.by_row}
    return Share(1.0, rows)


def account(
    plan: Plan,
    replies: Replies,
    moved: Mapping[str, int],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """What is written about a round.

    Args:
        plan: the round.
        replies: its replies.
        moved: bytes of arrays, ``down`` and ``up``.
        metrics: metrics of the silos.
    """
    averaged = [source for source in plan.drawn if source in replies.sources]
    return {
        "round": plan.round_index + 1,
        "drawn": list(plan.drawn),
        "averaged": averaged,
        "missing": [s for s in plan.drawn if s not in averaged and s not in replies.left_out],
        "left_out": replies.left_out,
        "silos": sorted(replies.updates),
        "asked": sorted(replies.asked),
        "bytes_down": moved["down"],
        "bytes_up": moved["up"],
        "metrics": dict(metrics),
    }


def sentence(line: Mapping[str, Any], rounds: int) -> str:
    """One sentence about a round, from its :func:`account`."""
    losses = [v for k, v in line["metrics"].items() if k.endswith("/train_loss")]
    loss = f", training loss {math.fsum(losses) / len(losses):.3f}" if losses else ""
    without = f", without {', '.join(line['missing'])}" if line["missing"] else ""
    return (
        f"round {line['round']}/{rounds} averages {len(line['averaged'])} sources of "
        f"{len(line['silos'])} silos{without}{loss}; {line['bytes_down'] / 1e6:.2f} MB down, "
        f"{line['bytes_up'] / 1e6:.2f} MB up"
    )
