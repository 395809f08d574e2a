"""The few messages that workers exchange, and those of the ranks of a worker.

Workers synchronise at the start, at the outer step, and when a checkpoint is made.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dept.errors import WorkerLost
from dept.transport.gloo_messages import Several, each_to_each
from dept.transport.topology import Place


@dataclass
class Workers:
    """The workers of the job as this process sees them. A job of one worker exchanges nothing.

    Attributes:
        place: which worker this is, and which of its ranks.
        store: key-value store of the job, in the first worker; ``None`` with one worker.
        control: gloo group of leading ranks, for metrics and barriers.
        tensors: group of leading ranks for parameters: NCCL if each worker has GPUs of its own,
            else ``control``, which exchanges copies on the CPU.
        timeout: seconds to wait for other workers.
        sent: bytes sent to other workers so far, by purpose (``model`` or ``control``).
        waited: seconds that this worker has waited for others at the end of rounds.
        loss: the error to end with, once :meth:`all_arrive` has found that a worker is gone.
    """

    place: Place
    store: dist.Store | None = None
    control: dist.ProcessGroup | None = None
    tensors: dist.ProcessGroup | None = None
    timeout: float = 0.0

    def __post_init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.waited = 0.0
        self.loss: WorkerLost | None = None
        self._exchanges = 0
        self._ranks: dist.ProcessGroup | None = None

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self.place.workers

    @property
    def leads(self) -> bool:
        """Whether this rank communicates for its worker."""
        return self.place.rank == 0

    def all_to_all(
        self, pieces: Sequence[Tensor], sizes: Sequence[int], *, kind: str, stage: str
    ) -> list[Tensor]:
        """Send a piece to each worker, and receive one from each; only leading ranks call it.

        Args:
            pieces: one tensor [n] for each worker, all of one dtype and on one device.
            sizes: elements that each worker sends here.
            kind: key of ``sent`` that counts the bytes.
            stage: name of this point in errors.

        Returns:
            The received pieces, in the order of workers.

        Raises:
            WorkerLost: a worker did not arrive.
        """
        if self.count == 1:
            return list(pieces)
        here, like = self.place.worker, pieces[0]
        sent = sum(piece.numel() for piece in pieces) - pieces[here].numel()
        self.sent[kind] += sent * like.element_size()
        if self.tensors is not self.control:
            send, received = torch.cat(list(pieces)), like.new_empty(sum(sizes))
            lengths = [piece.numel() for piece in pieces]
            self._run(
                lambda: self.tensors.alltoall_base(
                    received, send, list(sizes), lengths, dist.AllToAllOptions()
                ),
                stage,
            )
            return list(received.split(list(sizes)))
        into = [torch.empty(size, dtype=like.dtype) for size in sizes]
        outgoing = [self._travelling(piece) for piece in pieces]
        assert self.control is not None
        gloo = self.control
        self._run(lambda: each_to_each(gloo, here, outgoing, into), stage)
        received = [tensor.to(like.device) for tensor in into]
        received[here] = pieces[here]
        return received

    def _travelling(self, tensor: Tensor) -> Tensor:
        """The tensor where its group can read it: on the CPU for gloo."""
        return tensor.cpu() if self.tensors is self.control else tensor

    def wait_for_all(self, stage: str) -> None:
        """Wait until every worker has arrived here.

        Raises:
            WorkerLost: a worker did not arrive.
        """
        began = time.perf_counter()
        if self.count > 1 and self.leads:
            self._run(lambda: self.control.barrier(dist.BarrierOptions()), stage)
        self.waited += time.perf_counter() - began

    def stop_before(self, point: str) -> None:
        """Make workers that wait at ``point`` stop, since this worker will not arrive there."""
        if self.store is not None and self.leads:
            self.store.compare_set(f"{point}/decision", "", "stop")

    def all_arrive(self, point: str, stops: Callable[[], bool], *, stage: str) -> bool:
        """Wait until every worker is at ``point``, or one of them stops instead, or is lost.

        Unlike other waits, it ends when this process is asked to stop: Python runs no signal
        handler while a group waits. The loss of a worker is kept in ``loss``, not raised, so that
        the caller can save its work first.

        Args:
            point: a name that is used once in a job.
            stops: returns whether this worker has been asked to stop.
            stage: name of this point in errors.

        Returns:
            Whether all arrived; the same on every rank of a worker.
        """
        if self.count == 1:
            return True
        return self.from_leader(self._all_arrive(point, stops, stage) if self.leads else None)

    def _all_arrive(self, point: str, stops: Callable[[], bool], stage: str) -> bool:
        assert self.store is not None and self.control is not None
        began, decision = time.perf_counter(), f"{point}/decision"
        try:
            self.store.set(f"{point}/{self.place.worker}", "1")
            all_here = self.control.barrier(dist.BarrierOptions())
            while not self.store.check([decision]):
                if all_here.is_completed():
                    all_here.wait()  # raises if the loss of a worker completed it
                    self.store.compare_set(decision, "", "go")
                elif stops():
                    self.stop_before(point)
                else:
                    time.sleep(min(0.001 + (time.perf_counter() - began) / 100, 0.05))
            self.waited += time.perf_counter() - began
            return self.store.get(decision) == b"go"
        except RuntimeError as error:
            self.loss = WorkerLost(self._missing(point, stage, error))
            return False

    def gather(self, value: Any, *, stage: str) -> list[Any]:
        """Gather the value of each worker, in their order, on every rank.

        Args:
            value: numbers, strings, tensors, and containers of them. Only the value of the leading
                rank of a worker is used.
            stage: name of this point in errors.

        Raises:
            WorkerLost: a worker did not arrive.
        """
        if self.count == 1:
            return [value]
        values = self._gather(value, stage) if self.leads else None
        return self.from_leader(values)

    def _gather(self, value: Any, stage: str) -> list[Any]:
        data = _pack(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        here = torch.tensor([data.numel()])
        self._run(lambda: self.control.allgather([lengths], [here]), stage)
        longest = max(int(length) for length in lengths)
        padded = torch.nn.functional.pad(data, (0, longest - data.numel()))
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        self._run(lambda: self.control.allgather([parts], [padded]), stage)
        self.sent["control"] += (self.count - 1) * (8 + longest)
        return [_unpack(part[: int(length)]) for part, length in zip(parts, lengths, strict=True)]

    def value_of_first(self, value: Any, *, stage: str) -> Any:
        """The value of the first worker, on every rank; arguments are those of :meth:`gather`.

        Args:
            value: numbers, strings, tensors, and containers of them. Only the value of the leading
                rank of the first worker is used.
            stage: name of this point in errors.

        Raises:
            WorkerLost: a worker did not arrive.
        """
        if self.count == 1:
            return value
        if self.leads:
            first = self.place.worker == 0
            data = _pack(value) if first else torch.empty(0, dtype=torch.uint8)
            length = torch.tensor([data.numel()])
            self._from_first(self.control, [length], kind="control", stage=stage)
            data = data if first else torch.empty(int(length), dtype=torch.uint8)
            self._from_first(self.control, [data], kind="control", stage=stage)
            value = _unpack(data)
        return self.from_leader(value)

    def from_first(self, tensors: Sequence[Tensor], *, kind: str, stage: str) -> None:
        """Overwrite ``tensors`` with those of the first worker, on every rank.

        Args:
            tensors: of the same shapes and dtypes on every worker.
            kind: key of ``sent`` that counts the bytes.
            stage: name of this point in errors.

        Raises:
            WorkerLost: a worker did not arrive.
        """
        if self.count > 1 and self.leads:
            self._from_first(self.tensors, tensors, kind=kind, stage=stage)
        self.share(tensors)

    def _from_first(
        self, group: dist.ProcessGroup, tensors: Sequence[Tensor], *, kind: str, stage: str
    ) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        for tensor in tensors:
            copy = self._travelling(tensor)
            self._run(lambda t=copy: group.broadcast([t], options), stage)
            if copy is not tensor:
                tensor.copy_(copy)
            if self.place.worker == 0:
                self.sent[kind] += (self.count - 1) * tensor.numel() * tensor.element_size()

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the leading rank of this worker."""
        if self.place.ranks > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self._of_ranks() if tensor.is_cpu else None)

    def first_of_ranks(self, value: Any) -> Any:
        """The first value among this worker's ranks that is not ``None``, on all of them."""
        if self.place.ranks == 1:
            return value
        values: list[Any] = [None] * self.place.ranks
        dist.all_gather_object(values, value, group=self._of_ranks())
        return next((given for given in values if given is not None), None)

    def wait_for_ranks(self) -> None:
        """Wait until every rank of this worker has arrived here."""
        if self.place.ranks > 1:
            dist.barrier(self._of_ranks())

    def _of_ranks(self) -> dist.ProcessGroup:
        """The gloo group of this worker's ranks, for what is on the CPU, which NCCL refuses."""
        if self._ranks is None:  # all ranks come here for the same exchange
            on_gpu = dist.get_backend() != "gloo"
            self._ranks = dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD
        assert self._ranks is not None
        return self._ranks

    def from_leader(self, value: Any) -> Any:
        """The value of the leading rank of this worker, on all of its ranks."""
        if self.place.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._of_ranks())
        return box[0]

    def _run(self, start: Callable[[], dist.Work | Several], stage: str) -> None:
        """Run one exchange; if it fails, name the missing workers."""
        assert self.store is not None
        self._exchanges += 1
        here = f"exchange/{self._exchanges}"
        try:
            self.store.set(f"{here}/{self.place.worker}", "1")
            start().wait()
        except RuntimeError as error:
            raise WorkerLost(self._missing(here, stage, error)) from error

    def _missing(self, exchange: str, stage: str, error: Exception) -> str:
        try:
            others = [w for w in range(self.count) if w != self.place.worker]
            lost = [w for w in others if not self.store.check([f"{exchange}/{w}"])]
        except RuntimeError:
            lost = [0]  # the store lives in the first worker
        who = f"worker {', '.join(map(str, lost))}" if lost else "a worker"
        how = f"within {self.timeout:.0f} s" if "timed out" in str(error).lower() else "and is gone"
        return (
            f"{who} did not come to {stage} {how}: see its own output for why; the same command "
            f"resumes from the last checkpoint"
        )


def _pack(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpack(data: Tensor) -> Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)
