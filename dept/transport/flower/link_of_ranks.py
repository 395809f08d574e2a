"""The link of a silo whose trainer is several processes: one of them has the socket."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dept.transport.flower.link import Announcement, Link
from dept.transport.flower.messages import Parcel
from dept.transport.workers import Workers


class LinkOfRanks:
    """What the trainer of a silo says to the server and hears from it, on each of its ranks.

    The leading rank has the socket. All ranks receive what the server directs.

    Args:
        link: the link of the leading rank; ``None`` on others.
        workers: the ranks.
    """

    def __init__(self, link: Link | None, workers: Workers) -> None:
        self.link, self.workers = link, workers

    def announce(self, announcement: Announcement) -> None:
        """Say what this silo is (:meth:`Link.announce`)."""
        if self.link is not None:
            self.link.announce(announcement)

    def answer(self, parcel: Parcel) -> None:
        """Send the answer to a round (:meth:`Link.answer`)."""
        if self.link is not None:
            self.link.answer(parcel)

    def close(self) -> None:
        """Stop listening (:meth:`Link.close`)."""
        if self.link is not None:
            self.link.close()

    def next_round(self, after: int, stops: Callable[[], bool]) -> Parcel | None:
        """Wait for the server to direct a round (:meth:`Link.next_round`).

        Twice a second all ranks hear that there is nothing yet, since a group of torch.distributed
        waits for minutes only, and a round of other silos may take hours.
        """
        while True:
            found = None if self.link is None else self.link.next_round(after, lambda: True)
            sizes = found and {name: array.shape for name, array in found.arrays.items()}
            said = found and (found.kind, found.fields, sizes)
            said, is_over = self.workers.from_leader((said, stops()))
            if said is not None:
                return self._received(found, *said)
            if is_over:
                return None

    def _received(self, found: Parcel | None, kind: str, fields: dict, sizes: dict) -> Parcel:
        if found is None:
            arrays = {name: torch.empty(shape).numpy() for name, shape in sizes.items()}
            found = Parcel(kind, fields, {}, arrays)
        self.workers.share([torch.from_numpy(array) for array in found.arrays.values()])
        return found
