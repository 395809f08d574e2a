"""Trainings in processes of their own, which have done their imports before.

A server process imports the libraries once, and each training is a fork of it: so trainings cost no
imports, start from the same state, and leave nothing behind for the next one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from forks import forks
from measure import REPOSITORY, Spent

CLOCK = Path(__file__).with_name("clock.py")
QUIET = ["save_folder=null", "autoresume=false"]  # of both sides


def run(function: Callable[..., Any], *given: Any, processes: int = 1) -> None:
    """Call a function in forked processes, as ranks of one job.

    Args:
        function: function of a module.
        given: its arguments, the same in each process.
        processes: number of ranks; with several, `RANK` and the like are set.

    Raises:
        RuntimeError: a process failed; with the end of its output.
    """
    context = forks()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(processes)]
        started = [
            context.Process(target=_rank, args=(function, given, rank, processes, port, log))
            for rank, log in enumerate(map(str, logs))
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        for process, log in zip(started, logs, strict=True):
            if process.exitcode:
                raise RuntimeError(f"a training failed:\n{log.read_text()[-3000:]}")


def _rank(function: Callable, given: tuple, rank: int, processes: int, port: int, log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # As in a command; a fork of the server would start loaders from the server too.
    multiprocessing.set_start_method("fork", force=True)
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
        place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()})
    sys.exit(function(*given))


def prepare() -> None:
    """Let the server do its imports before anything is measured."""
    run(_nothing)


def _nothing() -> None:
    """A process that only starts."""


def ours(
    experiment: str, overrides: Sequence[str], *, workers: int = 1, warm: int = 0
) -> list[dict[str, Any]]:
    """Train an experiment as `train.py` does.

    Args:
        experiment: path of a yaml, relative to the repository.
        overrides: overrides of the yaml.
        workers: number of processes.
        warm: batches that are not counted.

    Returns:
        What the clock of each process found (`bench/clock.py`), and `start`, the time at which it
        was started, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = now()
        given = arguments(experiment, folder, overrides)
        run(_train_ours, given, folder, warm, processes=workers)
        return [_read(Path(folder, f"{rank}.json"), began) for rank in range(workers)]


def arguments(experiment: str, folder: str, overrides: Sequence[str]) -> list[str]:
    """Arguments of `train.py` for a run that leaves its files in a folder, and has the clock.

    Args:
        experiment: path of a yaml, relative to the repository.
        folder: the folder.
        overrides: overrides of the yaml.
    """
    return [
        str(REPOSITORY / experiment),
        "run_name=tmp-bench",
        *QUIET,
        f"callbacks.run_files.folder={folder}",
        f"loggers.jsonl.path={folder}/metrics.jsonl",
        f"code_paths=[{CLOCK}]",
        *overrides,
    ]


def now() -> float:
    """Seconds of the clock that `bench/clock.py` reads too."""
    return time.perf_counter()


def _train_ours(given: list[str], folder: str, warm: int) -> int:
    from dept.training.arguments import main

    file = Path(folder, os.environ.get("RANK", "0") + ".json")
    return main([*given, f"callbacks.clock.path={file}", f"callbacks.clock.warm={warm}"])


def plain(config: Mapping[str, Any], *, warm: int = 0) -> dict[str, Any]:
    """Train with llm-foundry's own command, without anything of ours.

    Args:
        config: the yaml, as :func:`plain_config` returns it.
        warm: batches that are not counted.

    Returns:
        What the clock found (`bench/clock.py`), and `start`, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plain.yaml")
        clock = {"path": f"{folder}/0.json", "warm": warm}
        file.write_text(yaml.safe_dump({**config, "callbacks": {"clock": clock}}))
        began = now()
        run(_train_plain, str(file))
        return _read(Path(folder, "0.json"), began)


def _train_plain(file: str) -> None:
    from llmfoundry.command_utils import train_from_yaml

    train_from_yaml(file)


def _read(file: Path, began: float) -> dict[str, Any]:
    return json.loads(file.read_text()) | {"start": began}


def plain_config(
    experiment: str, overrides: Sequence[str], shards: Mapping[str, Path], batches: int
) -> dict[str, Any]:
    """The same model, batch, optimizer and shards in an llm-foundry yaml.

    Args:
        experiment: path of our yaml, relative to the repository.
        overrides: overrides of the yaml.
        shards: folder of the MDS shards of each source.
        batches: batches to train.
    """
    from dept.config import complete, extends
    from dept.training.on_machine import choose

    config = extends.resolve(extends.load(REPOSITORY / experiment, [*QUIET, *overrides]))
    choose(config)
    # With the vocabulary of the tokenizer: llm-foundry's default has 50 368 ids.
    model = complete.complete(deepcopy(config))["model"]
    algorithms = {name: of for name, of in config["algorithms"].items() if name != "dept"}
    other = {"variables", "run_name", "callbacks", "loggers", "algorithms", "train_loader"}
    other |= {"max_duration", "eval_interval"}
    kept = {k: v for k, v in config.items() if k not in other and k[:5] not in ("save_", "autor")}
    streams = {name: {"local": str(folder)} for name, folder in shards.items()}
    dataset = {"streams": streams, "shuffle": True, "max_seq_len": config["max_seq_len"]}
    # In this process the threads of Streaming would take the interpreter from the training thread.
    loader = {"name": "text", "dataset": dataset, "drop_last": True, "num_workers": 1}
    return {
        **kept,
        "model": model,
        "algorithms": algorithms,
        "train_loader": loader,
        "max_duration": f"{batches}ba",
        "eval_interval": 0,
        "code_paths": [str(CLOCK)],
    }


def a_batch(found: Mapping[str, Any], warm: int) -> Spent:
    """The mean time of a batch after the first `warm`, with all that is between batches.

    Args:
        found: what a clock found.
        warm: batches that are not counted.
    """
    end = max(found["ended"][-1], *(r["seconds"] for r in found["rounds"]), 0)
    count = len(found["began"]) - warm
    return Spent((end - found["warm"]) / count, (found["cpu"] - found["warm_cpu"]) / count)
