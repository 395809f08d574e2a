"""What a slow worker costs a fast one: workers in one Composer world against worlds of their own.

    python bench/slow_worker.py [--slow 0.05] [--steps 40]

Two workers train the same SPEC experiment, the second of them made slower by sleeping at each
step. Once as the two ranks of one Composer world that exchange no gradients, and once each in a
world of its own, as `train.py` runs them. Told are the seconds that the *fast* worker needs for a
local step, and the collectives that Composer makes for it.
"""

import argparse
import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", type=float, default=0.05, help="seconds added to each step")
    parser.add_argument("--steps", type=int, default=40, help="local steps of a slot")
    options = parser.parse_args()
    context = get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there, options.steps), daemon=True))
        processes[-1].start()
        pipes.append(here)
    results = {}
    port = 29400 + os.getpid() % 1000
    # In turn, so that a drift of the machine's speed meets both
    for slow in (0.0, options.slow, 0.0, options.slow):
        for own_worlds in (False, True):
            port += 1
            for rank, pipe in enumerate(pipes):
                pipe.send((rank, own_worlds, slow * rank, port))
            fast, _ = [pipe.recv() for pipe in pipes]
            results.setdefault((own_worlds, slow), []).append(fast)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    report(results, options.slow)


def report(results, slow) -> None:
    """A row for each way, of the better of two runs; and what slowing down one worker costs."""
    print(f"\nThe fast of two workers; the other sleeps {slow * 1e3:.0f} ms more at each step.")
    print(f"{'':24}{'alike':>12}{'one slow':>12}{'ratio':>8}{'collectives':>14}{'bytes':>8}")
    for own_worlds, name in ((False, "one Composer world"), (True, "a world each")):
        alike, held = (min(results[own_worlds, s]) for s in (0.0, slow))
        calls, size = alike[1:]
        print(
            f"{name:24}{alike[0] * 1e3:9.1f} ms{held[0] * 1e3:9.1f} ms{held[0] / alike[0]:8.2f}"
            f"{calls:8.1f}/batch{size:8.0f}"
        )


def serve(pipe, steps: int) -> None:
    """Train as often as asked; imports are paid for once."""
    os.chdir(REPOSITORY)
    from composer.core import Callback
    from llmfoundry import registry

    import callbacks.registration
    import dept.registration

    callbacks.registration.register()
    dept.registration.register()

    class Sleep(Callback):
        """Makes each step longer, and measures it."""

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds
            self.began: list[float] = []

        def batch_start(self, state, logger) -> None:
            self.began.append(time.perf_counter())
            time.sleep(self.seconds)

    registry.callbacks.register("sleep", func=Sleep)
    given = dict(os.environ)
    while (job := pipe.recv()) is not None:
        os.environ.clear()
        os.environ.update(given)
        pipe.send(train(*job, steps))


def train(rank: int, own_worlds: bool, slow: float, port: int, steps: int):
    """One round; seconds, collectives and their bytes, for each local step of the first slot."""
    import torch.distributed as dist
    from llmfoundry.command_utils import train as llmfoundry_train

    from dept import config as configs
    from dept import workers
    from dept.place import Place

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update(NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if dist.is_initialized():
        dist.destroy_process_group()
    # In one world, nobody joins: each rank takes itself for the only worker, and trains all
    # sources; what Composer does for each batch is what it would do for workers.
    workers.join(Place.of(os.environ, 1) if own_worlds else Place(), timeout=600)
    config = configs.load(
        REPOSITORY / "yamls/dept_spec.yaml",
        [
            "train_loader.sources=[en,it]",
            "max_duration=1ep",
            f"algorithms.dept.local_steps={steps}",
            "eval_interval=0",
            "save_folder=null",
            "autoresume=false",
            f"global_train_batch_size={8 if own_worlds else 16}",
            "device_train_microbatch_size=8",
        ],
    )
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
    began = next(c for c in trainer.state.callbacks if type(c).__name__ == "Sleep").began
    batches = trainer.state.timestamp.batch.value
    if dist.get_world_size() == 1:
        counted = [0, 0]  # of one process: nothing travels
    # The first step warms up, and the last is followed by the outer step.
    return (
        (began[steps - 1] - began[1]) / (steps - 2),
        counted[0] / batches,
        counted[1] / batches,
    )


if __name__ == "__main__":
    main()
