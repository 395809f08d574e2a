"""Average the local models of a round from coded updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dept.method.averaging import Average, Share, mean_update
from dept.method.compression import Compression
from dept.transport.process_group import Workers
from dept.transport.topology import Place


class CodedReduction:
    """Weighted mean of coded pseudo-gradients; the mean is sent coded too (as SparseLoCo, 2025).

    Each source's pseudo-gradient, start - local, is coded alone (dept/method/compression.py). The
    first worker decodes all of them, sums them in float64 in the order of the corpus, codes the
    mean and sends it to all workers. So every worker steps from the same bytes, and the result does
    not depend on which worker trained which source.

    Args:
        start: the global parameters that every source starts from, by name. Kept by reference.
        compression: the codec and its error feedback.
        errors: coding error of earlier messages of each source, by source. Kept by reference.
        returned_error: coding error of earlier means, on the first worker. Kept by reference.
        order: all sources, in the order of the corpus.

    Attributes:
        pending: the new ``errors`` of the sources of this round, valid after the outer step.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        compression: Compression,
        errors: Mapping[str, Mapping[str, Tensor]],
        returned_error: Mapping[str, Tensor],
        order: Sequence[str],
    ) -> None:
        self.start, self.compression = start, compression
        self.errors, self.returned_error = errors, returned_error
        self.order = order
        self.pending: dict[str, dict[str, Tensor]] = {}
        self.returned_pending: dict[str, Tensor] = {}
        self._messages: dict[str, Tensor] = {}

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

    def averages(
        self,
        workers: Workers | None = None,
        shares: Sequence[Mapping[str, Share]] | None = None,
        *,
        stage: str = "the outer step",
    ) -> dict[str, Average]:
        """The mean of the coded updates of all workers, on every rank.

        Args:
            workers: the workers of the job; this one alone by default. All must make this call.
            shares: for each worker, the shares of the sources that it coded; not all empty.
            stage: name of this point in errors.

        Raises:
            NumericalFault: a message is not as it was sent.
            WorkerLost: another worker did not arrive.
        """
        workers = workers or Workers(Place())
        shares = shares or [dict.fromkeys(self._messages, Share())]
        rows = self._held_rows([share for own in shares for share in own.values()])
        like = {n: v[rows[n]] if n in rows else v for n, v in self.start.items()}
        device = next(iter(self.start.values())).device
        coded = torch.empty(self.compression.size(like, rows), dtype=torch.uint8, device=device)
        if workers.leads:
            messages = self._at_the_first(workers, shares, stage)
            if workers.place.worker == 0:
                mean = self._mean(messages, shares, rows, like)
                coded, self.returned_pending = self._encode_mean(mean, rows)
        workers.from_first([coded], kind="model", stage=stage)
        mean = self.compression.decode(coded, like, rows, sender="the mean")
        averages = {}
        for name, value in self.start.items():
            held, average = None, value - mean[name] if name not in rows else value.clone()
            if name in rows:
                average[rows[name]] -= mean[name]
                held = torch.zeros(len(value), dtype=torch.bool, device=device)
                held[rows[name]] = True
            averages[name] = Average(average, held)
        return averages

    def _at_the_first(
        self, workers: Workers, shares: Sequence[Mapping[str, Share]], stage: str
    ) -> dict[str, Tensor]:
        """All messages by source, on the first worker."""
        lengths = [
            [self.compression.size(self._like(share), share.rows) for share in own.values()]
            for own in shares
        ]
        here = workers.place.worker
        device = next(iter(self.start.values())).device
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
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

    def _mean(
        self,
        messages: Mapping[str, Tensor],
        shares: Sequence[Mapping[str, Share]],
        rows: Mapping[str, Tensor],
        like: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        every = {source: share for own in shares for source, share in own.items()}
        updates = (
            (
                self.compression.decode(
                    messages[source], self._like(every[source]), every[source].rows, sender=source
                ),
                every[source],
            )
            for source in self.order
            if source in every
        )
        return mean_update(updates, self.start, rows)

    def _encode_mean(
        self, mean: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Code the mean with the error of earlier means, which is kept for all rows."""
        error = dict(self.returned_error)
        for name, ids in rows.items():
            if name in error:
                error[name] = error[name][ids.cpu()]
        coded, left = self.compression.encode(mean, rows, error)
        for name, ids in rows.items():
            if name in left:
                of_all = self.returned_error.get(name)
                if of_all is None:
                    of_all = torch.zeros(len(self.start[name]), left[name].shape[1])
                of_all = of_all.clone()
                of_all[ids.cpu()] = left[name]
                left[name] = of_all
        return coded, left

    def _held_rows(self, shares: Sequence[Share]) -> dict[str, Tensor]:
        """For each parameter averaged by row, int64[n]: the rows that some source holds."""
        names = sorted({name for share in shares for name in share.rows})
        return {n: torch.cat([s.rows[n] for s in shares]).unique().to(self._device) for n in names}

    def _rows(self, name: str, share: Share) -> Tensor:
        value = self.start[name]
        return value[share.rows[name].to(value.device)] if name in share.rows else value

    def _like(self, share: Share) -> dict[str, Tensor]:
        return {
            name: value.new_empty((len(share.rows[name]), *value.shape[1:]))
            if name in share.rows
            else value
            for name, value in self.start.items()
        }

    @property
    def _device(self) -> torch.device:
        return next(iter(self.start.values())).device
