"""Processes that stay, and train together as often as asked: imports are paid for once."""

import json
import os
import socket
import traceback
from pathlib import Path

import numpy as np
from forks import forks


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Fleet:
    """``size`` processes, of which a run takes the first ones as its job."""

    def __init__(self, size: int) -> None:
        context = forks()
        self.members = []
        for _ in range(size):
            here, there = context.Pipe()
            context.Process(target=_serve, args=(there,), daemon=True).start()
            self.members.append(here)

    def train(
        self,
        root: Path,
        experiment: str,
        *overrides: str,
        processes: int,
        environment: dict[str, str] | None = None,
    ) -> list[dict]:
        """Trains as `composer -n processes train.py` would; what each process ended with.

        ``environment`` is added to theirs.

        Returns:
            For each process its tensors by name, positions, and the error it ended with if any.
        """
        job = {"root": root, "experiment": experiment, "overrides": overrides}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank, member in enumerate(self.members[:processes]):
            place = {"RANK": rank, "LOCAL_RANK": rank}
            place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "NODE_RANK": 0}
            given = {key: str(value) for key, value in place.items()} | address
            member.send(job | {"environment": given | (environment or {})})
        results = [member.recv() for member in self.members[:processes]]
        for result in results:
            assert result.get("error") is None, result["error"]
        return results

    def close(self) -> None:
        for member in self.members:
            member.send(None)


def learned(results):
    """What a job has learned: the global parameters of every process, private ones of the owner."""
    tensors = {}
    for result in results:
        for name, value in result["tensors"].items():
            if name in tensors:
                assert np.array_equal(tensors[name], value), f"processes differ in {name}"
            tensors[name] = value
    return tensors


def summary(root, name):
    """What a summary says of the training; not how long it took, nor who did it."""
    found = json.loads((root / "runs" / name / "summary.json").read_text())
    outside = ("timing", "peak_memory_bytes", "workers", "ranks_per_worker", "communication")
    return {key: value for key, value in found.items() if key not in outside}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value), name


def _serve(connection) -> None:
    from dept.checkpoint import trust

    os.environ["OMP_NUM_THREADS"] = "1"
    trust.guard()
    given = dict(os.environ)
    while (job := connection.recv()) is not None:
        os.environ.clear()
        os.environ.update(given | job["environment"])
        try:
            connection.send(_train(job))
        except BaseException:
            connection.send({"error": traceback.format_exc()})


def _train(job) -> dict:
    import torch.distributed
    from omegaconf import OmegaConf
    from training import dept_of, load, tensors_of, train

    from dept.config import complete as configs
    from dept.transport import process_group
    from dept.transport.topology import Place

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    config = load(job["root"], job["experiment"], *job["overrides"])
    dept, _ = configs.options_of(OmegaConf.to_container(config, resolve=True))
    process_group.join(Place.of(os.environ, dept.ranks_per_worker), dept.worker_timeout)
    trainer = train(job["root"], job["experiment"], *job["overrides"], checked=True)
    dept = dept_of(trainer)
    body = {name: value.detach().clone() for name, value in dept.run.slots.live.values().items()}
    return {
        "tensors": {name: value.numpy() for name, value in tensors_of(trainer).items()},
        "parked": {name: value.numpy() for name, value in body.items()},
        "positions": dict(dept.run.positions),
        "batches": trainer.state.timestamp.batch.value,
        "totals": dept.totals,
        "slots_per_worker": dept.run.schedule.slots_per_worker,
    }
