"""How the local models of each round are averaged: exactly, or coded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dept.method.averaging import Average, Share
from dept.method.compression import Compression
from dept.transport.coded_exchange import CodedReduction
from dept.transport.exchange import ExactReduction
from dept.transport.process_group import Workers


class Reduction(Protocol):
    """From the local models of one round to their average; a transport is a class of these two."""

    def add(self, source: str, local: Mapping[str, Tensor], share: Share) -> None:
        """Take the local model of a source of this worker."""

    def averages(
        self, workers: Workers, shares: Sequence[Mapping[str, Share]], *, stage: str
    ) -> dict[str, Average]:
        """The average over all workers, each of which has the sources of its ``shares``."""


@dataclass
class Reductions:
    """Makes the reduction of each round, and keeps what coding left for the next.

    Attributes:
        compression: of updates; ``None`` averages them as they are.
        order: all sources, in the order of the corpus.
        errors: what the coded messages of each source lacked so far, by source; its private state.
        returned_error: what the coded means lacked so far, on the first worker.
    """

    compression: Compression | None
    order: Sequence[str]
    errors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    returned_error: dict[str, Tensor] = field(default_factory=dict)

    def open(self, start: Mapping[str, Tensor]) -> Reduction:
        """The reduction of a round that starts from ``start``."""
        if self.compression is None:
            return ExactReduction(start)
        return CodedReduction(start, self.compression, self.errors, self.returned_error, self.order)

    def message_bytes(self, start: Mapping[str, Tensor], share: Share) -> int:
        """Bytes of what a source with that share gives to the average."""
        like = {
            name: value.new_empty((len(share.rows[name]), *value.shape[1:]), device="meta")
            if name in share.rows
            else value
            for name, value in start.items()
        }
        if self.compression is None:
            return sum(value.numel() * value.element_size() for value in like.values())
        return self.compression.size(like, share.rows)

    def close(self, reduction: Reduction) -> None:
        """After the outer step: what was left of this round is for the next one."""
        if isinstance(reduction, CodedReduction):
            self.errors |= reduction.pending
            self.returned_error |= reduction.returned_pending
