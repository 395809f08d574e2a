"""Combine the local models of a round from their updates, which are gathered as coded messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dept.method.aggregation import Aggregation
from dept.method.averaging import Average, Share, mean_update, shapes
from dept.method.compression import Compression
from dept.transport.topology import Place
from dept.transport.workers import Workers


class CodedReduction:
    """Combines coded pseudo-gradients; the result is sent coded too (as SparseLoCo, 2025).

    Each source's pseudo-gradient, start - local, is coded alone (dept/method/compression.py). The
    first worker decodes all of them, combines them in the order of the corpus (their mean is summed
    in float64), codes the result and sends it to all workers. So every worker steps from the same
    bytes, and the result does not depend on which worker trained which source.

    Args:
        start: the global parameters that every source starts from, by name. Kept by reference.
        compression: the codec and its error feedback.
        errors: coding error of earlier messages of each source, by source. Kept by reference.
        returned_error: coding error of earlier means, on the first worker. Kept by reference.
        order: all sources that were drawn for the round, in the order of the corpus.
        aggregation: how pseudo-gradients are combined; by default to their mean.
        noise_seed: seed of the noise of this round, if there is any.

    Attributes:
        pending: the new ``errors`` of the sources of this round, valid after the outer step.
        returned_pending: the new ``returned_error``, likewise; empty but on the first worker.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        compression: Compression,
        errors: Mapping[str, Mapping[str, Tensor]],
        returned_error: Mapping[str, Tensor],
        order: Sequence[str],
        aggregation: Aggregation | None = None,
        noise_seed: int = 0,
    ) -> None:
        self.start, self.compression = start, compression
        self.errors, self.returned_error = errors, returned_error
        self.order = order
        self.aggregation, self.noise_seed = aggregation or Aggregation(), noise_seed
        self.pending: dict[str, dict[str, Tensor]] = {}
        self.returned_pending: dict[str, Tensor] = {}
        self._messages: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, source: str, local: Mapping[str, Tensor], share: Share) -> None:
        """Code the local model of one source; only the message is kept.

        Args:
            source: name of the source.
            local: shared parameters of its local model, by name: float tensors, with the shape of
                the global parameter, or float[n, ...] for its n token rows. The update is
                ``start - local``.
            share: its token rows; its weight is used in :meth:`averages`.
        """
        update = {name: self._rows(name, share) - value for name, value in local.items()}
        self._messages[source], self.pending[source] = self.compression.encode(
            update, share.rows, self.errors.get(source)
        )

    def take(self, source: str, message: Tensor) -> None:
        """Take the update of a source that another process has coded.

        Args:
            source: name of the source.
            message: uint8[n], as :meth:`dept.method.compression.Compression.encode` returned it.
        """
        self._messages[source] = message

    @torch.no_grad()
    def averages(
        self,
        workers: Workers | None = None,
        shares: Sequence[Mapping[str, Share]] | None = None,
        *,
        stage: str = "the outer step",
    ) -> dict[str, Average]:
        """The combination of the coded updates of all workers, on every rank.

        Args:
            workers: the workers of the job; this one alone by default. All must make this call.
            shares: for each worker, the shares of the sources that it coded; all empty only with
                differential privacy.
            stage: name of this point in errors.

        Raises:
            NumericalFault: a message is not as it was sent.
            WorkerLost: another worker did not arrive.
        """
        workers = workers or Workers(Place())
        shares = shares or [dict.fromkeys(self._messages, Share())]
        every = {source: share for own in shares for source, share in own.items()}
        rows = self._held_rows(list(every.values()))
        like = shapes(self.start, rows)
        size = self.compression.size(like, rows)
        coded = torch.empty(size, dtype=torch.uint8, device=self._device)
        chosen: Sequence[str] = list(every)
        if workers.leads:
            messages = self._at_the_first(workers, shares, stage)
            if workers.place.worker == 0:
                update, chosen = self._combine(messages, every, rows)
                held = self._held_rows([every[source] for source in chosen])
                coded, self.returned_pending = self._encode(update, rows, held)
        if self.aggregation.rule.selects and rows:
            chosen = workers.value_of_first(list(chosen), stage=stage)
        held = self._held_rows([every[source] for source in chosen])
        workers.from_first([coded], kind="model", stage=stage)
        update = self.compression.decode(coded, like, rows, sender="the mean")
        averages = {}
        for name, value in self.start.items():
            if name not in rows:
                averages[name] = Average(value - update[name], None)
                continue
            average = value.clone()
            average[rows[name]] -= update[name]
            is_held = torch.zeros(len(value), dtype=torch.bool, device=self._device)
            is_held[held[name]] = True
            averages[name] = Average(average, is_held)
        return averages

    def _at_the_first(
        self, workers: Workers, shares: Sequence[Mapping[str, Share]], stage: str
    ) -> dict[str, Tensor]:
        """All messages by source, on the first worker."""
        lengths = [
            [
                self.compression.size(shapes(self.start, share.rows), share.rows)
                for share in own.values()
            ]
            for own in shares
        ]
        here = workers.place.worker
        nothing = torch.empty(0, dtype=torch.uint8, device=self._device)
        own = torch.cat([nothing, *(self._messages[source] for source in shares[here])])
        pieces = [own, *[nothing] * (workers.count - 1)]
        sizes = [sum(of_worker) if here == 0 else 0 for of_worker in lengths]
        received = workers.all_to_all(pieces, sizes, kind="model", stage=stage)
        if here:
            return {}
        return {
            source: message
            for flat, sources, of_worker in zip(received, shares, lengths, strict=True)
            for source, message in zip(sources, flat.split(of_worker), strict=True)
        }

    def _combine(
        self,
        messages: Mapping[str, Tensor],
        every: Mapping[str, Share],
        rows: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Sequence[str]]:
        """The pseudo-gradient for the outer step, and the sources that it is made of."""
        decoded = (
            (
                source,
                self.compression.decode(
                    messages[source],
                    shapes(self.start, every[source].rows),
                    every[source].rows,
                    sender=source,
                ),
            )
            for source in self.order
            if source in every
        )
        if self.aggregation.is_plain:  # one update after another, which needs less memory
            updates = ((update, every[source]) for source, update in decoded)
            return mean_update(updates, self.start, rows), list(every)
        return self.aggregation.combine(
            {source: (update, every[source]) for source, update in decoded},
            self.start,
            rows,
            drawn=len(self.order),
            noise_seed=self.noise_seed,
        )

    def _encode(
        self,
        update: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Code the result with the error of earlier ones, which is kept for all rows.

        Rows that are sent and that no chosen source holds are 0; their error waits.
        """
        error = dict(self.returned_error)
        waits = {n: ~torch.isin(ids, held[n]).cpu() for n, ids in rows.items()}
        for name, ids in rows.items():
            if name in error:
                error[name] = error[name][ids.cpu()]
                error[name][waits[name]] = 0.0
        coded, left = self.compression.encode(update, rows, error)
        for name, ids in rows.items():
            if name in left:
                of_all = self.returned_error.get(name)
                if of_all is None:
                    of_all = torch.zeros(len(self.start[name]), left[name].shape[1])
                of_all = of_all.clone()
                of_all[ids.cpu()[~waits[name]]] = left[name][~waits[name]]
                left[name] = of_all
        return coded, left

    def _held_rows(self, shares: Sequence[Share]) -> dict[str, Tensor]:
        """For each parameter averaged by row, int64[n]: the rows that some source holds."""
        names = sorted({name for share in shares for name in share.rows})
        return {n: torch.cat([s.rows[n] for s in shares]).unique().to(self._device) for n in names}

    def _rows(self, name: str, share: Share) -> Tensor:
        value = self.start[name]
        return value[share.rows[name].to(value.device)] if name in share.rows else value

    @property
    def _device(self) -> torch.device:
        return next(iter(self.start.values())).device
