"""Workers: which process trains for which, and the few messages that they exchange.

Each worker is a Composer world of its own: its ranks see one another and nobody else, so that no
call of the trainer can wait for another worker (docs/workers.md has the measurements behind it).
Beside those worlds, one process of each worker is in a group in which workers meet: at the start,
at the outer step, and where a checkpoint is made.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dept.errors import WorkerLost
from dept.transport.topology import Place


@dataclass
class Workers:
    """This process among all workers. A job of one worker exchanges nothing.

    Attributes:
        place: which worker this is, and which of its ranks.
        sent: bytes handed to the transport for other workers so far, by what they were for.
        waited: seconds that this worker waited for others at the end of rounds, so far.
    """

    place: Place
    store: dist.Store | None = None
    figures: dist.ProcessGroup | None = None
    tensors: dist.ProcessGroup | None = None
    timeout: float = 0.0

    def __post_init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.waited = 0.0
        self._meetings = 0

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self.place.workers

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its worker."""
        return self.place.rank == 0

    def all_to_all(
        self, pieces: Sequence[Tensor], sizes: Sequence[int], *, kind: str, stage: str
    ) -> list[Tensor]:
        """Send a piece to each worker, and receive one of each; of leading ranks only.

        Args:
            pieces: one-dimensional, for each worker, all of one dtype and on one device.
            sizes: elements that each worker sends here.
            kind: what it is counted as.
            stage: where workers meet, for the error.

        Raises:
            WorkerLost: a worker did not come.
        """
        if self.count == 1:
            return list(pieces)
        lengths = [piece.numel() for piece in pieces]
        send = torch.cat(list(pieces))
        received = send.new_empty(sum(sizes))
        others = sum(lengths) - lengths[self.place.worker]
        self.sent[kind] += others * send.element_size()
        self._meet(
            lambda: self.tensors.alltoall_base(
                received, send, list(sizes), lengths, dist.AllToAllOptions()
            ),
            stage,
        )
        return list(received.split(list(sizes)))

    def wait_for_all(self, stage: str) -> None:
        """Wait until every worker is here.

        Raises:
            WorkerLost: a worker did not come.
        """
        began = time.perf_counter()
        if self.count > 1 and self.leads:
            self._meet(lambda: self.figures.barrier(dist.BarrierOptions()), stage)
        self.waited += time.perf_counter() - began

    def stop_before(self, point: str) -> None:
        """Let those who wait at ``point`` stop, since this worker will not come there."""
        if self.store is not None and self.leads:
            self.store.compare_set(f"{point}/decision", "", "stop")

    def all_arrive(self, point: str, stops: Callable[[], bool], *, stage: str) -> bool:
        """Wait until every worker is at ``point``, or one of them stops instead.

        Unlike other waits, it ends when this process is asked to stop: Python runs no handler of
        signals while a group waits.

        Args:
            point: a name that occurs once in a job.
            stops: whether this worker has been asked to stop.
            stage: where workers synchronise, for the error.

        Returns:
            Whether all arrived; the same on every rank of every worker that is here.

        Raises:
            WorkerLost: a worker is gone, or did not come in time.
        """
        if self.count == 1:
            return True
        return self._from_leader(self._all_arrive(point, stops, stage) if self.leads else None)

    def _all_arrive(self, point: str, stops: Callable[[], bool], stage: str) -> bool:
        assert self.store is not None and self.figures is not None
        began, decision = time.perf_counter(), f"{point}/decision"
        try:
            self.store.set(f"{point}/{self.place.worker}", "1")
            all_here = self.figures.barrier(dist.BarrierOptions())
            while not self.store.check([decision]):
                if all_here.is_completed():
                    all_here.wait()  # raises if it was completed by the loss of a worker
                    self.store.compare_set(decision, "", "go")
                elif stops():
                    self.stop_before(point)
                else:
                    time.sleep(min(0.001 + (time.perf_counter() - began) / 100, 0.05))
            self.waited += time.perf_counter() - began
            return self.store.get(decision) == b"go"
        except RuntimeError as error:
            raise WorkerLost(self._missing(point, stage, error)) from error

    def gather(self, value: Any, *, stage: str) -> list[Any]:
        """What each worker gave, in their order, on every rank.

        Args:
            value: numbers, strings, tensors, and containers of them. Only that of the leading
                rank of a worker counts.
            stage: where workers meet, for the error.

        Raises:
            WorkerLost: a worker did not come.
        """
        if self.count == 1:
            return [value]
        values = self._gather(value, stage) if self.leads else None
        return self._from_leader(values)

    def _gather(self, value: Any, stage: str) -> list[Any]:
        data = _pack(value)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        here = torch.tensor([data.numel()])
        self._meet(lambda: self.figures.allgather([lengths], [here]), stage)
        longest = max(int(length) for length in lengths)
        padded = torch.nn.functional.pad(data, (0, longest - data.numel()))
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        self._meet(lambda: self.figures.allgather([parts], [padded]), stage)
        self.sent["figures"] += (self.count - 1) * (8 + longest)
        return [_unpack(part[: int(length)]) for part, length in zip(parts, lengths, strict=True)]

    def value_of_first(self, value: Any, *, stage: str) -> Any:
        """What the first worker gave, on every rank; as :meth:`gather` otherwise.

        Raises:
            WorkerLost: a worker did not come.
        """
        if self.count == 1:
            return value
        if self.leads:
            first = self.place.worker == 0
            data = _pack(value) if first else torch.empty(0, dtype=torch.uint8)
            length = torch.tensor([data.numel()])
            self._from_first(self.figures, [length], kind="figures", stage=stage)
            data = data if first else torch.empty(int(length), dtype=torch.uint8)
            self._from_first(self.figures, [data], kind="figures", stage=stage)
            value = _unpack(data)
        return self._from_leader(value)

    def from_first(self, tensors: Sequence[Tensor], *, kind: str, stage: str) -> None:
        """Overwrite ``tensors`` by those of the first worker, on every rank.

        Raises:
            WorkerLost: a worker did not come.
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
            self._meet(lambda t=tensor: group.broadcast([t], options), stage)
            if self.place.worker == 0:
                self.sent[kind] += (self.count - 1) * tensor.numel() * tensor.element_size()

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` by those of the leading rank of this worker."""
        if self.place.ranks > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def first_of_ranks(self, value: Any) -> Any:
        """The first value that is not ``None`` among those of this worker's ranks, on all."""
        if self.place.ranks == 1:
            return value
        values: list[Any] = [None] * self.place.ranks
        dist.all_gather_object(values, value)
        return next((given for given in values if given is not None), None)

    def wait_for_ranks(self) -> None:
        """Wait until every rank of this worker is here."""
        if self.place.ranks > 1:
            dist.barrier()

    def _from_leader(self, value: Any) -> Any:
        if self.place.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _meet(self, start: Callable[[], dist.Work], stage: str) -> None:
        """Run one exchange, and say who is missing if it fails."""
        assert self.store is not None
        self._meetings += 1
        here = f"meeting/{self._meetings}"
        try:
            self.store.set(f"{here}/{self.place.worker}", "1")
            start().wait()
        except RuntimeError as error:
            raise WorkerLost(self._missing(here, stage, error)) from error

    def _missing(self, meeting: str, stage: str, error: Exception) -> str:
        try:
            others = [w for w in range(self.count) if w != self.place.worker]
            lost = [w for w in others if not self.store.check([f"{meeting}/{w}"])]
        except RuntimeError:
            lost = [0]  # the store lives in the first worker
        who = f"worker {', '.join(map(str, lost))}" if lost else "a worker"
        how = f"within {self.timeout:.0f} s" if "timed out" in str(error).lower() else "and is gone"
        return (
            f"{who} did not come to {stage} {how}: see its own output for why; the same command "
            f"goes on from the last checkpoint"
        )


_current = Workers(Place())


def current() -> Workers:
    """The workers of this job, as :func:`join` found them; by default this process alone."""
    return _current


def join(place: Place, timeout: float) -> Workers:
    """Meet the other workers, and make this worker's ranks a world of their own.

    From here on ``RANK``, ``WORLD_SIZE`` and their like are those of the worker, which is what
    Composer, llm-foundry and Streaming read. Must run before any of them asks for the world.

    Args:
        place: of this process.
        timeout: seconds to wait for the slowest worker wherever all meet.
    """
    global _current
    if place.workers == 1:
        _current = Workers(place)
        return _current
    wait = timedelta(seconds=timeout)
    with _ended_by_sigterm():
        store, _, _ = next(
            dist.rendezvous("env://", rank=place.global_rank, world_size=place.world, timeout=wait)
        )
    os.environ.update(place.environment(os.environ))
    on_gpu = torch.cuda.is_available()
    if place.ranks > 1:
        inside = dist.PrefixStore(f"worker/{place.worker}", store)
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(
            backend, store=inside, rank=place.rank, world_size=place.ranks, timeout=wait
        )
    figures = tensors = None
    if place.rank == 0:
        here, count = place.worker, place.workers
        figures = dist.ProcessGroupGloo(dist.PrefixStore("figures", store), here, count, wait)
        tensors = figures
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            tensors = dist.ProcessGroupNCCL(dist.PrefixStore("tensors", store), here, count, wait)
    _current = Workers(place, store, figures, tensors, timeout)
    return _current


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process at once: no handler of Python's runs while C++ waits.

    A worker would else wait for one that is dead until its time is over.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _pack(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpack(data: Tensor) -> Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)
