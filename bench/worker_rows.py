"""Rows of `make bench` about workers: two on two cores, a slow one, bytes of an outer step."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import fits
from measure import REPOSITORY, Result, Row, Setting, alternate, quotients

SPEC = "yamls/dept_spec.yaml"
NO_EVALUATION = ["eval_interval=0"]
INTERFACE = Path("/sys/class/net/lo/statistics/rx_bytes")


def two_workers(setting: Setting) -> list[Result]:
    """A round of all sources with one worker, and with two.

    Args:
        setting: what is measured on.
    """
    fits.prepare()
    overrides = [*setting.overrides, f"variables.local_steps={2 if setting.small else 20}"]
    overrides += [*NO_EVALUATION, "max_duration=2ep"]

    def seconds(workers: int) -> float:
        every = fits.ours(SPEC, overrides, workers=workers)
        return max(f["rounds"][1]["seconds"] - f["rounds"][0]["seconds"] for f in every)

    one, two = alternate(lambda: seconds(1), lambda: seconds(2), times=setting.times)
    raw = {"one_worker_round_seconds": one, "two_workers_round_seconds": two}
    return [Result("", quotients(one, two), raw)]


def slow_worker(setting: Setting) -> list[Result]:
    """The time of a step of the *fast* of two workers, when the other one sleeps at each step.

    Once as the two ranks of one Composer world that exchange no gradients, and once as separate
    worlds, as `train.py` runs them.

    Args:
        setting: what is measured on.
    """
    fits.prepare()
    steps, slow = (4, 0.05) if setting.small else (40, 0.05)
    two = f"train_loader.sources=[{','.join(setting.sources[:2])}]"
    options = [two, "max_duration=1ep", f"algorithms.dept.local_steps={steps}"]
    results = []
    for own_worlds, name in ((True, "a world each"), (False, "one Composer world")):
        batch = f"global_train_batch_size={8 if own_worlds else 16}"
        collectives = []

        def step(sleep: float, own_worlds=own_worlds, batch=batch, collectives=collectives):
            found = _pair(setting, "dept_spec", [*options, batch], own_worlds, sleep)
            collectives.append(found["collectives"])
            # The first step warms up, and the last is followed by the outer step
            return (found["began"][steps - 1] - found["began"][1]) / (steps - 2)

        alike, held = alternate(lambda: step(0.0), lambda: step(slow), times=setting.times)
        raw = {"alike_seconds": alike, "one_slow_seconds": held, "sleep_seconds": slow}
        raw["calls_and_bytes_of_collectives_a_batch"] = collectives
        results.append(Result(name, quotients(held, alike), raw))
    return results


def sent_bytes(setting: Setting) -> list[Result]:
    """Bytes on the loopback interface over those that DEPT counts, two rounds of each variant.

    Args:
        setting: what is measured on.
    """
    if not INTERFACE.exists():
        return []  # it is Linux that counts them
    fits.prepare()
    results = []
    for variant in ("spec", "trim", "glob"):
        values, counted = [], []
        for _ in range(setting.times):
            before = int(INTERFACE.read_text())
            options = ["max_duration=2ep", "algorithms.dept.local_steps=2"]
            found = _pair(setting, f"dept_{variant}", options, True, 0.0)
            after = int(INTERFACE.read_text())
            counted.append({key: found[key] for key in ("sent_bytes", "other_bytes")})
            values.append((after - before) / sum(counted[-1].values()))
        results.append(Result(variant.upper(), values, {"counted": counted}))
    return results


def _pair(
    setting: Setting, experiment: str, options: list[str], own_worlds: bool, sleep: float
) -> dict[str, Any]:
    """Train with two workers; what the first one measured."""
    overrides = [*setting.overrides, *options]
    with tempfile.TemporaryDirectory() as folder:
        fits.run(train, experiment, overrides, own_worlds, sleep, folder, processes=2)
        return json.loads(Path(folder, "0").read_text())


def train(
    experiment: str, overrides: list[str], own_worlds: bool, sleep: float, folder: str
) -> None:
    """One run of this process, which writes what it measured.

    That is `began`, the times at which steps began, in seconds; `collectives`, their calls and
    bytes per batch; `sent_bytes` and `other_bytes`.

    Args:
        experiment: name of a yaml below `yamls/`.
        overrides: overrides of the yaml.
        own_worlds: give each process a Composer world of its own.
        sleep: seconds that the second process sleeps at each step.
        folder: folder of the files.
    """
    import torch.distributed as dist
    from llmfoundry.command_utils import train as llmfoundry_train
    from omegaconf import OmegaConf

    from dept.config import extends
    from dept.training import registration
    from dept.training.on_machine import choose
    from dept.transport import process_group
    from dept.transport.topology import Place

    registration.register()
    rank = int(os.environ["RANK"])
    # In one world no process joins workers: each rank acts as the only worker and trains all
    # sources; Composer does the same work per batch as it would for workers.
    process_group.join(Place.of(os.environ, 1) if own_worlds else Place(), timeout=600)
    path = REPOSITORY / "yamls" / f"{experiment}.yaml"
    quiet = [*fits.QUIET, *NO_EVALUATION, "device_train_microbatch_size=8"]
    config = extends.load(path, [*quiet, f"code_paths=[{fits.CLOCK}]", *overrides])
    for key, value in choose(extends.resolve(config))[0].items():
        OmegaConf.update(config, key, value, force_add=True)
    clock = {"path": f"{folder}/clock{rank}", "sleep": sleep * rank}
    config.callbacks, config.loggers = {"clock": clock}, {}
    counted = [0, 0]
    originals = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "barrier")}
    for name, original in originals.items():

        def counting(*arguments, original=original, **options):
            tensors = [a for a in arguments if hasattr(a, "element_size")]
            counted[0] += 1
            counted[1] += sum(t.numel() * t.element_size() for t in tensors)
            return original(*arguments, **options)

        setattr(dist, name, counting)
    trainer = llmfoundry_train(config)
    if dist.get_world_size() == 1:
        counted = [0, 0]  # one process sends nothing
    batches = trainer.state.timestamp.batch.value
    totals = next(a for a in trainer.state.algorithms if hasattr(a, "run")).totals
    found = {
        "began": json.loads(Path(folder, f"clock{rank}").read_text())["began"],
        "collectives": [number / batches for number in counted],
        **{key: totals[key] for key in ("sent_bytes", "other_bytes")},
    }
    Path(folder, str(rank)).write_text(json.dumps(found))


ROWS = [
    Row("two-workers", "speed of two workers on two cores", "one worker", ">= 1.8", two_workers),
    Row(
        "slow-worker",
        "a step of the fast of two workers, the other sleeping 50 ms more at each",
        "the step if both are alike",
        "<= 1.05",
        slow_worker,
    ),
    Row(
        "sent-bytes",
        "bytes between two workers that the loopback interface counts",
        "bytes that DEPT counts",
        "<= 1.05",
        sent_bytes,
    ),
]
