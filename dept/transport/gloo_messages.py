"""Messages from each process to each other one through gloo, in both directions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass
class Several:
    """Messages that are waited for together."""

    works: Sequence[dist.Work]

    def wait(self) -> None:
        """Wait until every message has been received, or sent."""
        for work in self.works:
            work.wait()


def each_to_each(
    group: dist.ProcessGroup, here: int, pieces: Sequence[Tensor], into: Sequence[Tensor]
) -> Several:
    """Start to receive from all other processes, and only then to send.

    gloo sends a message when its receiver has asked for it, and the request travels behind what the
    receiver itself is sending. Its own all-to-all sends first, so that the later of two processes
    has all its numbers sent before the other one begins.

    Args:
        group: a group of gloo.
        here: rank of this process.
        pieces: what goes to each rank, on the CPU; that of ``here`` is left out.
        into: where the message of each rank is received, on the CPU.
    """
    others = [rank for rank in range(len(pieces)) if rank != here]
    receives = [group.recv([into[rank]], rank, 0) for rank in others if into[rank].numel()]
    sends = [group.send([pieces[rank]], rank, 0) for rank in others if pieces[rank].numel()]
    return Several([*receives, *sends])
