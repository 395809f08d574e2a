"""The callback of `bench/soak.py`, which names this file in `code_paths`."""

import tempfile
import time
from pathlib import Path

import psutil
from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry import registry


class Soak(Callback):
    """Records the resources of the process every few rounds, after the checkpoint.

    Attributes:
        samples: round, seconds since the first sample, MiB of memory, and counts of resources.
    """

    samples: list[dict[str, float]]

    def __init__(self, every: int) -> None:
        self.every, self.began = every, time.monotonic()
        Soak.samples = []

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch.value % self.every:
            return
        here = psutil.Process()
        shared = (m.path.startswith("/dev/shm/") for m in here.memory_maps(grouped=False))
        Soak.samples.append(
            {
                "round": state.timestamp.epoch.value,
                "seconds": time.monotonic() - self.began,
                "memory": here.memory_info().rss / 2**20,
                "files": here.num_fds(),
                "shared": sum(shared),
                "threads": here.num_threads(),
                "children": len(here.children(recursive=True)),
                "temporary": sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
            }
        )


registry.callbacks.register("soak", func=Soak)
