"""The reduction of each round: local models are averaged exactly, or from coded updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dept.method.averaging import Average, Share
from dept.method.compression import Compression
from dept.transport.coded_exchange import CodedReduction
from dept.transport.exchange import ExactReduction
from dept.transport.flower.updates import Updates
from dept.transport.process_group import Workers


class Reduction(Protocol):
    """Averages the local models of one round; a transport is a class with these two methods."""

    def add(self, source: str, local: Mapping[str, Tensor], share: Share) -> None:
        """Add the local model of a source of this worker.

        Args:
            source: its name.
            local: shared parameters of its local model, by name.
            share: its weight and its token rows.
        """

    def averages(
        self, workers: Workers, shares: Sequence[Mapping[str, Share]], *, stage: str
    ) -> dict[str, Average]:
        """The average over all workers, on every rank.

        Args:
            workers: the workers of the job.
            shares: for each worker, the shares of its sources by name.
            stage: name of this point in errors.

        Returns:
            The average of every shared parameter, by name.
        """


@dataclass
class Reductions:
    """Makes the reduction of each round, and keeps coding errors for the next one.

    Attributes:
        compression: compression of updates; ``None`` averages local models exactly.
        order: all sources, in the order of the corpus.
        errors: coding error of the messages of each source, by source; private state of the source.
        returned_error: coding error of the means, on the first worker.
        sends: whether this is a silo, which sends local models (or coded updates) to a server.
    """

    compression: Compression | None
    order: Sequence[str]
    errors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    returned_error: dict[str, Tensor] = field(default_factory=dict)
    sends: bool = False

    def open(self, start: Mapping[str, Tensor]) -> Reduction:
        """The reduction of a round that starts from ``start``."""
        if self.sends:
            return Updates(start, self.compression, self.errors)
        if self.compression is None:
            return ExactReduction(start)
        return CodedReduction(start, self.compression, self.errors, self.returned_error, self.order)

    def message_bytes(self, start: Mapping[str, Tensor], share: Share) -> int:
        """Bytes that a source contributes to the average.

        Args:
            start: the global parameters by name; only their shapes are read.
            share: the share of the source.
        """
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
        """Keep the coding errors of a round for the next one, after the outer step."""
        if isinstance(reduction, (CodedReduction, Updates)):
            self.errors |= reduction.pending
        if isinstance(reduction, CodedReduction):
            self.returned_error |= reduction.returned_pending
