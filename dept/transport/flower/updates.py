"""The local models of a silo in one round, as they are sent to the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from dept.method.averaging import Average, Share
from dept.method.compression import Compression
from dept.transport.workers import Workers

Protect = Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]]
"""From a source and its pseudo-gradient by name to the one that may be sent."""


class Updates:
    """Collects the local models of the sources of a silo; the server averages them.

    Each source is sent by itself, so that the server can combine sources by any rule. With
    compression, its pseudo-gradient is coded as by a worker (``dept/transport/coded_exchange.py``),
    and the coding error stays in the silo.

    Args:
        start: the global parameters that every source starts from, by name. Kept by reference.
        compression: compression of updates; ``None`` sends local models as they are.
        errors: coding error of earlier messages of each source. Kept by reference.
        protect: adds noise to the pseudo-gradient of a source; ``None`` for none.

    Attributes:
        pending: the new ``errors`` of the sources of this round, valid once they are averaged.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        compression: Compression | None,
        errors: Mapping[str, Mapping[str, Tensor]],
        protect: Protect | None = None,
    ) -> None:
        self.protect = protect
        self.start, self.compression, self.errors = start, compression, errors
        self.pending: dict[str, dict[str, Tensor]] = {}
        self._arrays: dict[str, dict[str, np.ndarray]] = {}

    def add(self, source: str, local: Mapping[str, Tensor], share: Share) -> None:
        """Add the local model of one source.

        Args:
            source: its name.
            local: shared parameters of its local model, by name: float32 tensors.
            share: its token rows.
        """
        if self.compression is None and self.protect is None:
            self._arrays[source] = _arrays_of(source, local)
            return
        start = {
            name: (
                self.start[name][share.rows[name].to(value.device)]
                if name in share.rows
                else self.start[name]
            )
            for name, value in local.items()
        }
        update = {name: start[name] - value for name, value in local.items()}
        if self.protect is not None:
            update = self.protect(source, update)
        if self.compression is None:
            sent = {name: start[name] - value for name, value in update.items()}
            self._arrays[source] = _arrays_of(source, sent)
            return
        message, self.pending[source] = self.compression.encode(
            update, share.rows, self.errors.get(source)
        )
        self._arrays[source] = {source: message.cpu().numpy()}

    def arrays(self, sources: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays to send, of these sources."""
        return {name: a for source in sources for name, a in self._arrays[source].items()}

    def remove(self, source: str) -> None:
        """Drop a source whose update the server did not average."""
        self.pending.pop(source, None)
        self._arrays.pop(source, None)

    def averages(
        self, workers: Workers, shares: Sequence[Mapping[str, Share]], *, stage: str
    ) -> dict[str, Average]:
        """A silo averages nothing.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the server of the federation averages")


def _arrays_of(source: str, local: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {
        f"{source}/{name}": value.detach().to("cpu", copy=True).numpy()
        for name, value in local.items()
    }
