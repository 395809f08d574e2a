"""The place of a process in a job: its worker, and the environment that Composer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dept.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """One process of a job of ``workers`` workers of ``ranks`` processes each.

    Attributes:
        worker: which worker the process is part of, from 0.
        workers: how many workers there are.
        rank: rank of the process within its worker.
        ranks: processes of a worker; they train the same source on parts of its batch.
        local_rank: rank of the process on its machine.
        local_world: number of processes on its machine.
    """

    worker: int = 0
    workers: int = 1
    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str], ranks_per_worker: int) -> Place:
        """The place that a launcher (composer, torchrun, srun) gave this process.

        Args:
            environment: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; without
                them the job is this process alone.
            ranks_per_worker: how many consecutive ranks form a worker.

        Raises:
            ConfigError: the processes of the job, or of a machine, cannot be divided like this.
        """
        rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
        local_rank = int(environment.get("LOCAL_RANK", rank % local_world))
        if world % ranks_per_worker:
            raise ConfigError(
                f"algorithms.dept.ranks_per_worker is {ranks_per_worker}, which does not divide "
                f"the {world} processes of this job: start a multiple of it, or set it to one of "
                f"{_divisors(world)}"
            )
        if local_world % ranks_per_worker and ranks_per_worker % local_world:
            raise ConfigError(
                f"algorithms.dept.ranks_per_worker is {ranks_per_worker}, but a machine runs "
                f"{local_world} processes: set it to a divisor or a multiple of {local_world}, so "
                f"that no machine holds a part of a worker beside another"
            )
        return cls(
            worker=rank // ranks_per_worker,
            workers=world // ranks_per_worker,
            rank=rank % ranks_per_worker,
            ranks=ranks_per_worker,
            local_rank=local_rank,
            local_world=local_world,
        )

    @property
    def global_rank(self) -> int:
        """Rank in the whole job."""
        return self.worker * self.ranks + self.rank

    @property
    def world(self) -> int:
        """Processes of the whole job."""
        return self.workers * self.ranks

    def environment(self) -> dict[str, str]:
        """The environment variables that make this worker the whole world of Composer.

        Composer takes ``LOCAL_RANK`` as the device, and local rank 0 does the work that is done
        once on a machine. So both are counted within the worker, and each worker sees only its own
        GPUs (:meth:`gpus`).
        """
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.gpu_index),
            "LOCAL_WORLD_SIZE": str(self._ranks_here),
            "NODE_RANK": str(self.rank // self._ranks_here),
        }

    def gpus(self, visible: Sequence[str]) -> list[str]:
        """The GPUs of this worker on this machine: one for each of its ranks there.

        If there are fewer GPUs than processes, workers share them; the ranks of one worker do not,
        since NCCL refuses two ranks on one GPU.

        Args:
            visible: the GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them: those
                of the machine, or those that a launcher gave to this process.

        Raises:
            ConfigError: a worker has more ranks on this machine than there are GPUs.
        """
        ranks = self._ranks_here
        if not visible:
            return []
        if ranks > len(visible):
            raise ConfigError(
                f"algorithms.dept.ranks_per_worker is {self.ranks}, of which {ranks} are on this "
                f"machine, and this process sees {len(visible)} GPU: set it to {len(visible)} or "
                f"less; workers can share a GPU, the ranks of one worker cannot"
            )
        start = self._first % (len(visible) - len(visible) % ranks)
        return list(visible[start : start + ranks])

    @property
    def gpu_index(self) -> int:
        """Index of this rank's GPU among :meth:`gpus`: its local rank within the worker."""
        return self.local_rank - self._first

    @property
    def _ranks_here(self) -> int:
        """Ranks of this worker on this machine."""
        return min(self.ranks, self.local_world)

    @property
    def _first(self) -> int:
        """Local rank, on this machine, of the first rank of this worker."""
        return self.local_rank - self.local_rank % self._ranks_here


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
