"""Kill the processes of a federation at random, and compare with one job: the numbers are the same.

    python bench/federation_faults.py [--kills 6] [--seconds 20] [--seed 0] [key=value ...]

Victims are a trainer, a SuperNode, a ClientApp and the ServerApp; `--victims superlink` is for the
SuperLink, after whose death a SuperNode may have to be restarted by hand (docs/federation.md). What
was killed is started again with the same command. `round_timeout` is long, so that no round misses
a silo.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from federation import REPOSITORY, SHORT, SILOS, compare, start_parties, three_silos
from flower_processes import Federation, end_in_order

from dept import terminal
from dept.training.federation.server_files import ServerFiles

VICTIMS = ("trainer", "supernode", "clientapp", "serverapp", "superlink")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with kills; returns the exit status, 1 if the numbers differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, over the yaml")
    parser.add_argument("--experiment", default="dept_spec", help="of yamls/federation/")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="mean time between two kills")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS[:4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/federation-faults"))
    chosen = parser.parse_args(arguments)
    end_in_order()
    yaml = REPOSITORY / "yamls" / "federation" / f"{chosen.experiment}.yaml"
    overrides = [*SHORT, "algorithms.dept.federation.grace=600", *chosen.overrides, "run_name=demo"]
    with three_silos(chosen.folder) as federation:
        _train(federation, yaml, overrides, chosen)
        state = ServerFiles(federation.folder / "server" / "runs" / "demo" / "server").load()
        assert state is not None
        missing = [line for line in state.history if line["missing"]]
        if missing:
            terminal.say(f"Rounds missed silos: {missing}", style="bold red")
            return 1
        plain = REPOSITORY / "yamls" / f"{chosen.experiment}.yaml"
        of_job = [o for o in overrides if ".federation." not in o]
        return compare(federation, plain, of_job, state)


def _train(
    federation: Federation, yaml: Path, overrides: list[str], chosen: argparse.Namespace
) -> None:
    draw = random.Random(chosen.seed)
    server = start_parties(federation, yaml, overrides)
    kills, coming = 0, time.monotonic() + 2 * chosen.seconds
    server_folder = federation.folder / "server" / "runs" / "demo" / "server"
    while not (server_folder / "summary.json").is_file():
        time.sleep(0.5)
        if server.poll() is not None and not (server_folder / "summary.json").is_file():
            time.sleep(5.0)
            server = federation.serve(yaml, *overrides)
        for silo in SILOS:  # as a supervisor: Flower refuses a key until its old node is gone
            if federation.processes[f"{silo}/supernode"].poll() is not None:  # type: ignore[union-attr]
                federation.supernode(silo)
        if kills < chosen.kills and time.monotonic() > coming:
            victim, silo = draw.choice(chosen.victims), draw.choice([*SILOS])
            if _kill(federation, victim, silo, yaml, overrides):
                kills += 1
                terminal.say(f"kill {kills}: {victim} ({silo})")
            coming = time.monotonic() + draw.uniform(0.2, 1.8) * chosen.seconds
    for silo in SILOS:
        federation.processes[f"{silo}/trainer"].join(120)  # type: ignore[union-attr]


def _kill(federation: Federation, victim: str, silo: str, yaml: Path, overrides: list[str]) -> bool:
    """Kill a process, and start it again; returns whether it was there."""
    if victim == "trainer":
        if federation.processes[f"{silo}/trainer"].exitcode is not None:  # type: ignore[union-attr]
            return False
        federation.kill(f"{silo}/trainer")
        federation.trainer(silo, yaml, *overrides)
    elif victim == "supernode":
        federation.kill(f"{silo}/supernode")
        federation.supernode(silo)
    elif victim == "superlink":
        federation.kill("server/superlink")
        federation.superlink()
    else:
        owner = f"{silo}/supernode" if victim == "clientapp" else "server/superlink"
        found = [p for p in federation.family(owner) if _is_app(p, victim)]
        for process in found:
            process.send_signal(signal.SIGKILL)
        return bool(found)
    return True


def _is_app(process: psutil.Process, name: str) -> bool:
    try:
        return any(f"flwr-{name}" in part for part in process.cmdline())
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
