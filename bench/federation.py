"""A federation of three silos on this machine, and the same run as one job: `make federation`.

Each silo has a folder with its own shards, a trainer and a SuperNode; the server has no text. Then
the same yaml trains all sources in one process, and the numbers are compared. Both take overrides,
`key=value`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from flower_processes import REPOSITORY, Federation, end_in_order, split_corpus
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dept import terminal
from dept.config import extends
from dept.config.options import options_of
from dept.costs.transport import federation_round_bytes
from dept.data.corpus import read_corpus
from dept.method.compression import Compression
from dept.training.federation.server_files import ServerFiles, ServerState
from dept.training.summary import table

CORPUS = "multilingual"
SILOS = {"north": ["en", "ru", "ga"], "south": ["it", "tr", "hi"], "east": ["zh", "ja"]}
TRIES = 5
"""Starts of the server's run without a round between them, after which it is given up."""

SHORT = ["max_duration=3ep", "variables.local_steps=10"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the federation and the job; returns the exit status, 1 if their numbers differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, over the yaml")
    parser.add_argument("--experiment", default="dept_spec", help="of yamls/federation/")
    parser.add_argument("--folder", type=Path, default=Path("runs/federation"))
    chosen = parser.parse_args(arguments)
    end_in_order()
    yaml = REPOSITORY / "yamls" / "federation" / f"{chosen.experiment}.yaml"
    overrides = [*SHORT, *chosen.overrides, "run_name=demo"]
    shutil.rmtree(chosen.folder, ignore_errors=True)
    with parties_of(chosen.folder) as federation:
        wire = _train(federation, yaml, overrides)
        state = ServerFiles(federation.folder / "server" / "runs" / "demo" / "server").load()
        assert state is not None
        _show_table(federation)
        _show_bytes(yaml, overrides, state, wire)
        plain = REPOSITORY / "yamls" / f"{chosen.experiment}.yaml"
        return compare(federation, plain, overrides, state)


@contextmanager
def parties_of(folder: Path) -> Iterator[Federation]:
    """The parties of a federation, each silo with its part of the corpus in a folder of its own.

    Args:
        folder: of all parties.

    Yields:
        The federation, whose processes end with the block.
    """
    with tempfile.TemporaryDirectory(prefix="silos") as sockets:
        federation = Federation(folder, SILOS, Path(sockets))
        try:
            for silo, sources in SILOS.items():
                split_corpus(REPOSITORY, CORPUS, sources, federation.folder / silo)
            yield federation
        finally:
            federation.close()


def start_parties(federation: Federation, yaml: Path, overrides: Sequence[str]) -> Popen:
    """Start the SuperLink, and a SuperNode and a trainer for each silo; returns the server's run.

    Args:
        federation: the parties.
        yaml: the experiment.
        overrides: overrides of the yaml.
    """
    federation.superlink()
    for silo in SILOS:
        federation.register(silo)
        federation.supernode(silo)
        federation.trainer(silo, yaml, *overrides)
    return federation.serve(yaml, *overrides)


def _train(federation: Federation, yaml: Path, overrides: Sequence[str]) -> list[dict[str, int]]:
    """Run the federation, and show all of it; returns the bytes on the wire of each round."""
    server = start_parties(federation, yaml, overrides)
    metrics = federation.folder / "server" / "runs" / "demo" / "server" / "metrics.jsonl"
    wire: list[dict[str, int]] = []
    counted, tries = _counted(federation), 0
    with Live(console=Console(), auto_refresh=False) as live:
        while server.poll() is None or any(_trains(federation, silo) for silo in SILOS):
            for name in federation.revive():
                live.console.print(f"{name} has died, and is started again")
            if server.poll() is not None and not metrics.with_name("summary.json").is_file():
                tries += 1
                if tries > TRIES:
                    raise SystemExit(federation.log("server", "run")[-2000:])
                server = federation.serve(yaml, *overrides)
            rounds = metrics.read_text().count("\n") if metrics.is_file() else 0
            if rounds > len(wire):
                now = _counted(federation)
                wire.append({way: now[way] - counted[way] for way in now})
                counted, tries = now, 0
            live.update(_progress(federation), refresh=live.console.is_terminal)
            time.sleep(0.5)
            broken = [s for s in SILOS if _status(federation, s) > 0]
            if broken:
                print(federation.log(broken[0], "trainer")[-2000:])
                raise SystemExit(f"the trainer of {broken[0]} has ended")
        live.update(_progress(federation), refresh=True)
    return wire


def _trains(federation: Federation, silo: str) -> bool:
    return federation.processes[f"{silo}/trainer"].is_alive()  # type: ignore[union-attr]


def _status(federation: Federation, silo: str) -> int:
    return federation.processes[f"{silo}/trainer"].exitcode or 0  # type: ignore[union-attr]


def _counted(federation: Federation) -> dict[str, int]:
    meters = federation.meters.values()
    return {way: sum(meter.counted[way] for meter in meters) for way in ("down", "up")}


def _progress(federation: Federation) -> Table:
    rows = Table()
    for header in ("party", "sources", "MB in and out", "says"):
        rows.add_column(header)
    said = _last(federation.log("server", "run"), ("round ", "silo ", "training "))
    rows.add_row("server", "", "", said)
    for silo, sources in SILOS.items():
        counted = federation.meters[silo].counted
        moved = f"{counted['down'] / 1e6:.1f}  {counted['up'] / 1e6:.1f}"
        said = _last(federation.log(silo, "trainer"), ("round ", "silo ", "the update"))
        rows.add_row(silo, ", ".join(sources), moved, said or "starting")
    return rows


def _last(log: str, starts: tuple[str, ...]) -> str:
    lines = [line for line in log.splitlines() if line.startswith(starts)]
    return lines[-1][:80] if lines else ""


def _show_table(federation: Federation) -> None:
    """The table of the demo, from what each silo has measured on its own text."""
    found: dict[str, Any] = {}
    for silo in SILOS:
        path = federation.folder / silo / "runs" / "demo" / "summary.json"
        summary = json.loads(path.read_text())
        found = found or summary | {"sources": {}, "tokens": 0}
        found["sources"] |= summary["sources"]
        found["tokens"] += summary["tokens"]
    evaluations = [entry["eval"] for entry in found["sources"].values()]
    found["average"] = {
        key: sum(e[key] for e in evaluations) / len(evaluations) for key in evaluations[0]
    }
    order = [s for s in read_corpus(REPOSITORY, CORPUS).sources if s in found["sources"]]
    found["sources"] = {source: found["sources"][source] for source in order}
    terminal.show(table(found))


def _show_bytes(
    yaml: Path, overrides: Sequence[str], state: ServerState, wire: Sequence[Mapping[str, int]]
) -> None:
    dept, _ = options_of(extends.resolve(extends.load(yaml, overrides)))
    assert dept is not None
    shapes = {name: tuple(value.shape) for name, value in state.theta.items()}
    by_row = {name: shapes[name] for name in state.model["by_row"]}
    averaged = {name: shape for name, shape in shapes.items() if name not in by_row}
    corpus = read_corpus(REPOSITORY, CORPUS)
    rows = Table(title="bytes of a round, all silos together")
    for header in ("round", "formula", "arrays", "on the wire", "Flower and TLS add"):
        rows.add_column(header, justify="right")
    for line, moved in zip([h for h in state.history if h["drawn"]], wire, strict=False):
        held = [corpus.source(source).local_vocab_size for source in line["averaged"]]
        compression = Compression.of(dept.compression)
        down, up = federation_round_bytes(
            averaged, by_row, held, silos=len(line["silos"]), compression=compression
        )
        arrays, on_wire = line["bytes_down"] + line["bytes_up"], moved["down"] + moved["up"]
        added = f"{100 * (on_wire / arrays - 1):.1f} %"
        numbers = [f"{n:,}" for n in (down + up, arrays, on_wire)]
        rows.add_row(str(line["round"]), *numbers, added)
    terminal.show(rows)


def compare(
    federation: Federation, yaml: Path, overrides: Sequence[str], state: ServerState
) -> int:
    """Train the same sources as one job, and compare the global models bit for bit."""
    job = "one-machine"
    terminal.say("Now the same run in one process, for comparison.")
    sources = read_corpus(REPOSITORY, CORPUS).sources
    split_corpus(REPOSITORY, CORPUS, sources, federation.folder / job)
    process = federation.train(job, str(yaml), *overrides)
    process.join()
    if process.exitcode:
        raise SystemExit((federation.folder / job / "trainer.log").read_text()[-2000:])
    folder = federation.folder / job / "runs" / "demo" / "checkpoints"
    newest = torch.load(folder / "latest-rank0.pt", map_location="cpu", weights_only=False)
    model = newest["state"]["model"]
    differ = [n for n, value in state.theta.items() if not torch.equal(model[n], value)]
    numbers = sum(value.numel() for value in state.theta.values())
    if differ:
        terminal.say(f"The global models differ in {', '.join(differ)}.", style="bold red")
        return 1
    terminal.say(
        f"The federation and the job have the same {numbers:,} shared parameters, bit for bit.",
        style="bold",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
