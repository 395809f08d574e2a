"""Rows of `make bench` about a federation: bytes and memory of a round, time of the outer step."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from flower_processes import REPOSITORY, Federation
from measure import Result, Row, Setting, Spent
from stub_silo import SILO, SOURCE, shapes_of

from dept.config.options import DeptOptions
from dept.costs.transport import federation_round_bytes
from dept.method.averaging import Share
from dept.method.outer_optimizer import OuterOptimizer
from dept.training.federation.server import Server
from dept.training.federation.server_files import ServerFiles, ServerState

YAML = REPOSITORY / "yamls" / "federation" / "dept_glob.yaml"
LARGE, MIDDLE, SMALL = (768, 12, 50368), (512, 8, 12288), (64, 2, 1000)
"""Width, layers and vocabulary: 124 million, 31 million and 0.2 million parameters."""

ROUNDS = 3
PARTIES = ("SuperLink and ServerApp", "SuperNode and ClientApp", "trainer")


@functools.cache
def rounds_of(model: tuple[int, int, int]) -> dict[str, Any]:
    """Real Flower with one silo that does not train: bytes, seconds and memory.

    Args:
        model: width, layers and vocabulary.

    Returns:
        ``wire``, bytes of each round at the connection of the SuperNode; ``formula``, those of the
        cost model; ``seconds`` of each round; ``memory``, the most bytes of the processes of each
        party, by its name.
    """
    given = [f"algorithms.dept.federation.sources=[{SOURCE}]", f"max_duration={ROUNDS}ep"]
    given.append("run_name=bench")
    found: dict[str, Any] = {"wire": [], "seconds": [], "memory": Counter()}
    with tempfile.TemporaryDirectory(prefix="fed") as folder:
        federation = Federation(Path(folder), {SILO: [SOURCE]}, Path(folder))
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(federation, found["memory"], ended))
        try:
            federation.superlink()
            federation.register(SILO)
            federation.supernode(SILO)
            command = [sys.executable, str(REPOSITORY / "bench" / "stub_silo.py"), str(YAML)]
            command += [str(federation.socket(SILO)), *map(str, model), *given]
            federation.start("trainer", command, SILO)
            watcher.start()
            server = federation.serve(YAML, *given)
            metrics = federation.folder / "server" / "runs" / "bench" / "server" / "metrics.jsonl"
            before = 0
            while server.poll() is None:
                time.sleep(0.05)
                lines = metrics.read_text().splitlines() if metrics.is_file() else []
                if len(found["wire"]) < min(len(lines), ROUNDS):
                    now = sum(federation.meters[SILO].counted.values())
                    found["wire"].append(now - before)
                    found["seconds"].append(json.loads(lines[-1])["seconds"])
                    before = now
            if len(found["wire"]) < ROUNDS:
                raise RuntimeError(federation.log("server", "run")[-2000:])
        finally:
            ended.set()
            federation.close()
    found["formula"] = sum(federation_round_bytes(shapes_of(*model), {}, [0], silos=1))
    return found


def _watch(federation: Federation, most: Counter[str], ended: threading.Event) -> None:
    """Note the most memory of each party, ten times a second."""
    names = ("server/superlink", f"{SILO}/supernode", f"{SILO}/trainer")
    while not ended.wait(0.1):
        for party, name in zip(PARTIES, names, strict=True):
            used = 0
            for process in federation.family(name):
                try:
                    used += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            most[party] = max(most[party], used)


def wire_bytes(setting: Setting) -> list[Result]:
    """Bytes of a round at the connection of a SuperNode, over those of the cost model.

    The first round is left out, since a silo also sends the model as it is built.

    Args:
        setting: what is measured on.
    """
    found = rounds_of(SMALL if setting.small else MIDDLE)
    values = [wire / found["formula"] for wire in found["wire"][1:]]
    return [Result("", values, {key: found[key] for key in ("wire", "formula", "seconds")})]


def memory(setting: Setting) -> list[Result]:
    """The most memory of each party of a federation, in GB; pages that processes share count twice.

    Args:
        setting: what is measured on.
    """
    found = rounds_of(SMALL if setting.small else MIDDLE)
    raw = {"model_bytes": found["formula"] // 2}
    return [Result(party, [found["memory"][party] / 1e9], raw) for party in PARTIES]


def outer_step(setting: Setting) -> list[Result]:
    """CPU time of the outer step of the server, with its files, for three sources.

    Args:
        setting: what is measured on.
    """
    sources = ["en", "it", "zh"]
    outer = {"name": "nesterov", "lr": 0.7, "momentum": 0.9}
    options = DeptOptions(
        variant="glob", local_steps=1, outer_optimizer=outer, federation={"sources": sources}
    )
    draw = torch.Generator().manual_seed(0)
    shapes = shapes_of(*(SMALL if setting.small else LARGE))
    locals_ = {s: {n: torch.rand(v, generator=draw) for n, v in shapes.items()} for s in sources}
    shares = {source: Share(1.0, {}) for source in sources}
    parts = (
        "the average of three local models",
        "the step of the outer optimizer, Nesterov",
        "the state of the server on disk",
    )
    spent: dict[str, list[Spent]] = {part: [] for part in parts}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(
            options=options,
            seed=17,
            rounds=1,
            silos=SimpleNamespace(),  # type: ignore[arg-type]
            files=ServerFiles(folder),
            outer_optimizer=OuterOptimizer(**outer),
            state=ServerState(theta={n: torch.zeros(v) for n, v in shapes.items()}),
            say=lambda sentence: None,
        )
        for _ in range(setting.times):
            with _timed(spent[parts[0]]):
                means = server.combine(locals_, shares, sources)
            with _timed(spent[parts[1]]):
                server.state.theta = server.outer_optimizer.step(server.state.theta, means)
            server.state.round += 1
            server.state.outer_optimizer = server.outer_optimizer.state_dict()
            with _timed(spent[parts[2]]):
                server.files.save(server.state)
    parameters = sum(value.numel() for value in locals_["en"].values())
    return [
        Result(
            part,
            [one.cpu for one in spent[part]],
            {"wall_seconds": [one.wall for one in spent[part]], "parameters": parameters},
        )
        for part in parts
    ]


@contextmanager
def _timed(spent: list[Spent]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent.append(Spent(time.perf_counter() - wall, time.process_time() - cpu))


ROWS = [
    Row(
        "federation-bytes",
        "bytes of a round over Flower and TLS, 31 million parameters, one silo",
        "the cost model's",
        "<= 1.02",
        wire_bytes,
    ),
    Row(
        "federation-memory",
        "the most memory in a round of a federation, 31 million parameters, one silo",
        "a limit",
        "<= 3 GB",
        memory,
    ),
    Row(
        "federation-step",
        "CPU time of the outer step at the server, 124 million parameters, three sources",
        "a limit",
        "<= 5 s",
        outer_step,
    ),
]
