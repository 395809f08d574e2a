"""Measure two workers: the delay that a slow one causes, and the bytes of an outer step.

    python bench/workers.py [--slow 0.05] [--steps 40]

1. Two workers train the same SPEC experiment, and the second sleeps at each step: once as the two
   ranks of one Composer world that exchange no gradients, and once as separate worlds, as
   `train.py` runs them. Printed are the time of a local step of the *fast* worker, and the number
   of collectives of Composer.
2. Two workers train each variant for two rounds. Printed are the bytes that DEPT counts at the
   transport, and those that the loopback interface counts over the whole run (Linux).
"""

import argparse
import os
import time
from multiprocessing import get_context
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = ["eval_interval=0", "save_folder=null", "autoresume=false"]


class Pair:
    """Two processes that train several times, after doing their imports once."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.port = 29400 + os.getpid() % 1000
        self.pipes, self.processes = [], []
        for _ in range(2):
            here, there = context.Pipe()
            self.processes.append(context.Process(target=serve, args=(there,), daemon=True))
            self.processes[-1].start()
            self.pipes.append(here)
        for pipe in self.pipes:
            pipe.recv()  # imports are done

    def train(self, experiment: str, *overrides: str, own_worlds: bool = True, slow: float = 0.0):
        """Train one run; returns the measurements of the first process.

        Args:
            experiment: name of a yaml below ``yamls/``.
            overrides: overrides of the yaml.
            own_worlds: give each process a Composer world of its own.
            slow: seconds that the second process sleeps more at each step.
        """
        self.port += 1
        for rank, pipe in enumerate(self.pipes):
            pipe.send((experiment, overrides, own_worlds, slow * rank, rank, self.port))
        first, _ = [pipe.recv() for pipe in self.pipes]
        return first

    def close(self) -> None:
        """End both processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def main() -> None:
    """Command line: run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", type=float, default=0.05, help="seconds added to each step")
    parser.add_argument("--steps", type=int, default=40, help="local steps of a slot")
    options = parser.parse_args()
    pair = Pair()
    slow_worker(pair, options.slow, options.steps)
    bytes_sent(pair)
    pair.close()


def slow_worker(pair: Pair, slow: float, steps: int) -> None:
    """Print a row for each way, from the better of two runs, with the cost of a slow worker.

    Args:
        pair: the two processes.
        slow: seconds that the slow worker sleeps at each step.
        steps: local steps of the round, at least 3.
    """
    results: dict = {}
    options = ["train_loader.sources=[en,it]", "max_duration=1ep"]
    options.append(f"algorithms.dept.local_steps={steps}")
    # The two ways alternate, so that a drift of the machine's speed affects both.
    for sleep in (0.0, slow, 0.0, slow):
        for own_worlds in (False, True):
            batch = f"global_train_batch_size={8 if own_worlds else 16}"
            found = pair.train("dept_spec", *options, batch, own_worlds=own_worlds, slow=sleep)
            # The first step warms up, and the last is followed by the outer step
            seconds = (found["began"][steps - 1] - found["began"][1]) / (steps - 2)
            results.setdefault((own_worlds, sleep), []).append((seconds, *found["collectives"]))
    print(f"\nThe fast of two workers; the other sleeps {slow * 1e3:.0f} ms more at each step.")
    print(f"{'':20}{'alike':>12}{'one slow':>12}{'ratio':>8}{'collectives':>14}{'bytes':>8}")
    for own_worlds, name in ((False, "one Composer world"), (True, "a world each")):
        alike, held = (min(results[own_worlds, sleep]) for sleep in (0.0, slow))
        print(
            f"{name:20}{alike[0] * 1e3:9.1f} ms{held[0] * 1e3:9.1f} ms{held[0] / alike[0]:8.2f}"
            f"{alike[1]:8.1f}/batch{alike[2]:8.0f}"
        )


def bytes_sent(pair: Pair) -> None:
    """A row for each variant: bytes counted by DEPT, and by the interface."""
    print("\nTwo workers, two rounds, all eight sources: bytes on the way between them.")
    print(
        f"{'':12}{'model':>14}{'start, metrics':>16}{'interface':>14}{'ratio':>8}{'outer step':>13}"
    )
    for variant in ("spec", "trim", "glob"):
        before = loopback_bytes()
        options = ["max_duration=2ep", "algorithms.dept.local_steps=2"]
        found = pair.train(f"dept_{variant}", *options)
        after = loopback_bytes()
        counted = found["sent_bytes"] + found["other_bytes"]
        print(
            f"{variant:12}{found['sent_bytes']:14,}{found['other_bytes']:16,}{after - before:14,}"
            f"{(after - before) / counted:8.3f}{found['outer_step_seconds'] / 2 * 1e3:10.0f} ms"
        )


def loopback_bytes() -> int:
    """Bytes that the loopback interface has carried since the machine started."""
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def serve(pipe) -> None:
    """Run one of the two processes."""
    os.chdir(REPOSITORY)
    from composer.core import Callback
    from llmfoundry import registry

    from dept.training import registration

    registration.register()

    class Sleep(Callback):
        """Makes each step longer, and records when it began."""

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds
            self.began: list[float] = []

        def batch_start(self, state, logger) -> None:
            self.began.append(time.perf_counter())
            time.sleep(self.seconds)

    registry.callbacks.register("sleep", func=Sleep)
    given = dict(os.environ)
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        os.environ.clear()
        os.environ.update(given)
        pipe.send(train(*job))


def train(experiment, overrides, own_worlds: bool, slow: float, rank: int, port: int) -> dict:
    """One run of this process, and what it measured.

    Args:
        experiment: name of a yaml below ``yamls/``.
        overrides: overrides of the yaml.
        own_worlds: give each process a Composer world of its own.
        slow: seconds that this process sleeps at each step.
        rank: rank of this process, 0 or 1.
        port: port of the process group.

    Returns:
        ``began``, the times at which steps began, in seconds; ``collectives``, their calls and
        bytes per batch; ``sent_bytes``, ``other_bytes`` and ``outer_step_seconds``.
    """
    import torch.distributed as dist
    from llmfoundry.command_utils import train as llmfoundry_train

    from dept.config import extends
    from dept.transport import process_group
    from dept.transport.topology import Place

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update(NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if dist.is_initialized():
        dist.destroy_process_group()
    # In one world no process joins workers: each rank acts as the only worker and trains all
    # sources; Composer does the same work per batch as it would for workers.
    process_group.join(Place.of(os.environ, 1) if own_worlds else Place(), timeout=600)
    path = REPOSITORY / "yamls" / f"{experiment}.yaml"
    config = extends.load(path, [*SMALL, "device_train_microbatch_size=8", *overrides])
    config.callbacks, config.loggers = {"sleep": {"seconds": slow}}, {}
    counted = [0, 0]
    originals = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "barrier")}
    for name, original in originals.items():

        def counting(*arguments, original=original, **options):
            tensors = [a for a in arguments if hasattr(a, "element_size")]
            counted[0] += 1
            counted[1] += sum(t.numel() * t.element_size() for t in tensors)
            return original(*arguments, **options)

        setattr(dist, name, counting)
    try:
        trainer = llmfoundry_train(config)
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    if dist.get_world_size() == 1:
        counted = [0, 0]  # one process sends nothing
    batches = trainer.state.timestamp.batch.value
    totals = next(a for a in trainer.state.algorithms if hasattr(a, "run")).totals
    sleep = next(c for c in trainer.state.callbacks if type(c).__name__ == "Sleep")
    return {
        "began": sleep.began,
        "collectives": [number / batches for number in counted],
        **{key: totals[key] for key in ("sent_bytes", "other_bytes", "outer_step_seconds")},
    }


if __name__ == "__main__":
    main()
