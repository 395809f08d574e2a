"""The reduction of each round: local models are averaged exactly, or their updates are gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from dept.method.aggregation import Aggregation
from dept.method.averaging import Average, Share, shapes
from dept.method.compression import LOSSLESS, Compression
from dept.transport.coded_exchange import CodedReduction
from dept.transport.exchange import ExactReduction
from dept.transport.flower.updates import Protect, Updates
from dept.transport.workers import Workers


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
        compression: compression of updates; ``None`` for none.
        aggregation: how updates are combined. A plain mean without compression averages local
            models exactly, and gathers nothing.
        errors: coding error of the messages of each source, by source; private state of the source.
        returned_error: coding error of the means, on the first worker.
        sends: whether this is a silo, which sends local models (or coded updates) to a server.
        protect: adds noise to what a silo sends; ``None`` for none.
    """

    compression: Compression | None
    aggregation: Aggregation = field(default_factory=Aggregation)
    errors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    returned_error: dict[str, Tensor] = field(default_factory=dict)
    sends: bool = False
    protect: Protect | None = None

    @property
    def coding(self) -> Compression | None:
        """How updates are coded; ``None`` if local models are averaged exactly."""
        if self.compression is None and not (self.aggregation.is_plain or self.sends):
            return LOSSLESS
        return self.compression

    def open(
        self, start: Mapping[str, Tensor], drawn: Sequence[str], noise_seed: int = 0
    ) -> Reduction:
        """The reduction of a round.

        Args:
            start: the global parameters that the round starts from, by name.
            drawn: the sources of the round, in the order of the corpus.
            noise_seed: seed of the noise of the round, for differential privacy.
        """
        if self.sends:
            return Updates(start, self.compression, self.errors, self.protect)
        if self.coding is None:
            return ExactReduction(start)
        return CodedReduction(
            start,
            self.coding,
            self.errors,
            self.returned_error,
            drawn,
            self.aggregation,
            noise_seed,
        )

    def open_for_moments(self, start: Mapping[str, Tensor], drawn: Sequence[str]) -> Reduction:
        """The reduction of one moment of the inner optimizer, which keeps no coding error.

        An average replaces the one before it, so that errors do not add up over rounds, and an
        earlier error is of moments that have changed since. Messages are relative to the last
        average, as all workers decoded it.

        Args:
            start: the last average by name.
            drawn: the sources in the average, in the order of the corpus.
        """
        if self.compression is None:
            return ExactReduction(start)
        return CodedReduction(start, replace(self.compression, decay=0.0), {}, {}, drawn)

    def message_bytes(self, start: Mapping[str, Tensor], share: Share) -> int:
        """Bytes that a source contributes to the average.

        Args:
            start: the global parameters by name; only their shapes are read.
            share: the share of the source.
        """
        like = shapes(start, share.rows)
        if self.coding is None:
            return sum(value.numel() * value.element_size() for value in like.values())
        return self.coding.size(like, share.rows)

    def close(self, reduction: Reduction) -> None:
        """Keep the coding errors of a round for the next one, after the outer step."""
        if self.compression is None:
            return
        if isinstance(reduction, (CodedReduction, Updates)):
            self.errors |= reduction.pending
        if isinstance(reduction, CodedReduction):
            self.returned_error |= reduction.returned_pending
