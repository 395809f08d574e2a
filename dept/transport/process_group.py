"""How the processes of a job form workers.

Each worker is a separate Composer world: its ranks see only one another, so that no call of the
trainer can wait for another worker (docs/workers.md has the measurements). In addition, one process
of each worker is in a group in which workers synchronise.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dept.transport import devices
from dept.transport.topology import Place
from dept.transport.workers import Workers

_current = Workers(Place())


def current() -> Workers:
    """The workers of this job, as :func:`join` found them; by default this process alone."""
    return _current


def join(place: Place, timeout: float) -> Workers:
    """Connect to the other workers, and make this worker's ranks a separate world.

    After this call ``RANK``, ``WORLD_SIZE`` and the other variables are those of the worker, which
    Composer, llm-foundry and Streaming read. It must run before any of them reads the world size.

    Args:
        place: place of this process in the job.
        timeout: seconds to wait for the slowest worker at every synchronisation.
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
    devices.confine(place)
    os.environ.update(place.environment())
    if place.ranks > 1:
        inside = dist.PrefixStore(f"worker/{place.worker}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"  # Composer wants these
        dist.init_process_group(
            backend, store=inside, rank=place.rank, world_size=place.ranks, timeout=wait
        )
    control = tensors = None
    if place.rank == 0:
        here, count = place.worker, place.workers
        control = dist.ProcessGroupGloo(dist.PrefixStore("control", store), here, count, wait)
        tensors = control
        if _each_has_a_gpu(place, store):
            tensors = dist.ProcessGroupNCCL(dist.PrefixStore("tensors", store), here, count, wait)
    _current = Workers(place, store, control, tensors, timeout)
    return _current


def _each_has_a_gpu(place: Place, store: dist.Store) -> bool:
    """Whether every leading rank has a GPU of its own, which NCCL needs."""
    store.set(f"gpu/{place.worker}", devices.identity())
    gpus = [store.get(f"gpu/{worker}") for worker in range(place.workers)]
    return devices.NO_GPU.encode() not in gpus and len({*gpus}) == len(gpus)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process at once, since no Python handler runs while C++ code waits.

    Otherwise a worker would wait for a dead one until the timeout.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
