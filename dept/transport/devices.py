"""The device of this process: which GPUs it sees, and what they and their libraries can do.

CUDA reads ``CUDA_VISIBLE_DEVICES`` once, at the first call that starts it. So :func:`confine` must
run before any such call, and counts GPUs by NVML, which starts nothing.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch

from dept.errors import ConfigError
from dept.transport.topology import Place

VISIBLE = "CUDA_VISIBLE_DEVICES"
BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
NO_GPU = "none"

MOST_THREADS = 8
"""Threads of a process that trains on a GPU: more do not shorten what is left for its CPU."""


@dataclass(frozen=True)
class Device:
    """What this process trains on.

    Attributes:
        gpu: name of the GPU; ``None`` on a CPU.
        bf16: whether the GPU computes in bfloat16.
        flash: whether flash-attn is installed.
        threads: threads of torch.
    """

    gpu: str | None = None
    bf16: bool = False
    flash: bool = False
    threads: int = 1


def visible() -> list[str]:
    """The GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    os.environ.setdefault(BY_NVML, "1")
    given = os.environ.get(VISIBLE)
    count = torch.cuda.device_count()
    return list(map(str, range(count))) if given is None else given.split(",")[:count]


def confine(place: Place) -> None:
    """Let this process see only the GPUs of its worker; a second call changes nothing.

    Args:
        place: place of this process in the job.

    Raises:
        ConfigError: there are too few GPUs for the ranks of a worker.
    """
    if mine := place.gpus(visible()):
        os.environ[VISIBLE] = ",".join(mine)
        torch.cuda.set_device(place.gpu_index)


def take_own(local_rank: int, processes: int) -> None:
    """Use the GPU of this process in a job without workers (a baseline), as Composer counts them.

    Args:
        local_rank: rank of this process on its machine.
        processes: processes of the job on this machine.

    Raises:
        ConfigError: there are fewer GPUs than processes, which NCCL would refuse in many lines.
    """
    count = len(visible())
    if 0 < count < processes:
        raise ConfigError(
            f"{processes} processes of this job are on a machine of which each sees {count} GPU, "
            f"and the processes of a baseline cannot share one: start {count}, or show all GPUs to "
            f"every process"
        )
    if count:
        torch.cuda.set_device(local_rank)


def device() -> Device:
    """The device of this process; :func:`confine` must have run before."""
    flash = importlib.util.find_spec("flash_attn") is not None
    if not torch.cuda.is_available():
        return Device(flash=flash, threads=torch.get_num_threads())
    return Device(
        gpu=torch.cuda.get_device_name(),
        bf16=torch.cuda.get_device_capability() >= (8, 0),
        flash=flash,
        threads=torch.get_num_threads(),
    )


def use_threads(processes: int) -> None:
    """On a GPU, let torch use the cores of this machine, divided among its processes.

    On a CPU it keeps what ``OMP_NUM_THREADS`` says, 1 by default: sums depend on it. On a GPU a
    value above 1 is kept too.

    Args:
        processes: processes of the job on this machine.
    """
    if torch.cuda.is_available() and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) // processes
        torch.set_num_threads(max(1, min(cores, MOST_THREADS)))


def identity() -> str:
    """A name of the current GPU that no other GPU of the job has; ``NO_GPU`` on a CPU."""
    if not torch.cuda.is_available():
        return NO_GPU
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
