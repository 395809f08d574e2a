"""Kill the processes of a federation at random, and compare with one job: the numbers are the same.

    python bench/federation_faults.py [--kills 10] [--seed 0] [--victims NAME ...] [key=value ...]

Victims are a trainer, a SuperNode, a ClientApp, the SuperLink and the ServerApp. There is one kill
in every two rounds, at a random moment. What was killed is started again with the same command.
`round_timeout` and `grace` are long, so that no round misses a silo. If the bench itself is ended,
the same command continues it.

The table has what each kind of victim has cost. Goodput is the share of trained tokens that reached
the global model. If nothing happens for `--patience` seconds, the bench says who does not answer,
and ends.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from federation import REPOSITORY, SILOS, compare, parties_of, start_parties
from flower_processes import Federation, end_in_order
from kills import MODEL, batch_reached
from rich.table import Table

from dept import terminal
from dept.checkpoint.durable import is_whole
from dept.checkpoint.run_folder import numbered_checkpoints
from dept.checkpoint.source_files import SourceFiles
from dept.training.federation.server_files import ServerFiles

VICTIMS = ("trainer", "supernode", "clientapp", "serverapp", "superlink")
EACH = 2
"""Rounds for each kill."""

GOAL = 0.88
SHORT = ["algorithms.dept.federation.grace=3600", *MODEL]


@dataclass
class Kill:
    """One kill.

    Attributes:
        victim: what was killed.
        silo: whose it was; empty for the server's.
        round: rounds that were finished then.
        lost: steps that a trainer had trained, and had to train again.
        seconds: from the kill to the end of the round.
    """

    victim: str
    silo: str
    round: int
    lost: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with kills; returns the exit status, 1 if numbers differ or goodput is too small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, over the yaml")
    parser.add_argument("--experiment", default="dept_spec", help="of yamls/federation/")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=VICTIMS)
    parser.add_argument("--local-steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds without any progress"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/federation-faults"))
    chosen = parser.parse_args(arguments)
    end_in_order()
    yaml = REPOSITORY / "yamls" / "federation" / f"{chosen.experiment}.yaml"
    rounds = f"{EACH * (chosen.kills + 1)}ep"
    lengths = [f"variables.local_steps={chosen.local_steps}"]
    lengths += [f"max_duration={rounds}", f"eval_interval={rounds}"]
    lengths += [f"callbacks.source_metrics.held_out_interval={rounds}"]
    overrides = [*SHORT, *lengths, *chosen.overrides, "run_name=demo"]
    given = {key: str(value) for key, value in vars(chosen).items()}
    _clear_unless(chosen.folder, given)
    with parties_of(chosen.folder) as federation:
        fire = Fire(federation, yaml, overrides, chosen)
        fire.train()
        state = ServerFiles(fire.server_folder).load()
        assert state is not None
        goodput = _show(fire.kills, state.history, chosen.local_steps)
        missing = [line for line in state.history if line["missing"]]
        if missing:
            terminal.say(f"Rounds missed silos: {missing}", style="bold red")
        plain = REPOSITORY / "yamls" / f"{chosen.experiment}.yaml"
        differs = compare(
            federation, plain, [o for o in overrides if ".federation." not in o], state
        )
        return int(bool(missing) or bool(differs) or goodput < GOAL)


def _clear_unless(folder: Path, given: dict[str, str]) -> None:
    """Keep what an earlier call with the same options has left, and remove all else."""
    mark = folder / "options.json"
    if not mark.is_file() or json.loads(mark.read_text()) != given:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(given))


class Fire:
    """A federation that is trained while its processes are killed.

    Args:
        federation: the parties.
        yaml: the experiment.
        overrides: overrides of the yaml.
        chosen: arguments of the command.

    Attributes:
        kills: all so far; ``kills.jsonl`` keeps those whose round has ended.
    """

    def __init__(
        self, federation: Federation, yaml: Path, overrides: list[str], chosen: argparse.Namespace
    ) -> None:
        self.federation, self.yaml, self.overrides = federation, yaml, overrides
        self.wanted, self.victims, self.seed = chosen.kills, chosen.victims, chosen.seed
        self.patience = chosen.patience
        self.server_folder = federation.folder / "server" / "runs" / "demo" / "server"
        self.journal = federation.folder / "kills.jsonl"
        lines = self.journal.read_text().splitlines() if self.journal.is_file() else []
        self.kills = [Kill(**json.loads(line)) for line in lines]
        self._reached = dict.fromkeys(SILOS, 0)
        self._seen: Any = None
        self._seen_at = time.monotonic()

    def train(self) -> None:
        """Train, and kill.

        Raises:
            SystemExit: nothing happens any more.
        """
        if self._is_finished():
            return  # an earlier call has trained
        for file in (self.federation.folder / "server").glob("superlink.db*"):
            file.unlink()  # of an earlier call, with nodes that it takes for connected
        server = start_parties(self.federation, self.yaml, self.overrides)
        coming: float | None = None
        open_since: float | None = None  # the last kill, until its round has ended
        while not self._is_finished():
            time.sleep(0.5)
            self.federation.revive()
            lines = self._rounds()
            if open_since is not None and len(lines) > self.kills[-1].round:
                self.kills[-1].seconds = time.monotonic() - open_since
                self._note_lost()
                with open(self.journal, "a") as journal:
                    journal.write(json.dumps(asdict(self.kills[-1])) + "\n")
                open_since, coming = None, None
            if server.poll() is not None and not self._is_finished():
                time.sleep(2.0)
                server = self.federation.serve(self.yaml, *self.overrides)
            due = len(lines) > EACH * len(self.kills) and len(self.kills) < self.wanted
            if due and open_since is None:
                draw = random.Random(f"{self.seed} {len(self.kills)}")
                if coming is None:
                    typical = min(line["seconds"] for line in lines[-5:])
                    coming = time.monotonic() + draw.uniform(0, EACH * typical)
                elif time.monotonic() >= coming:
                    victim, silo = victim_of(len(self.kills), self.victims, self.seed)
                    lost = self._kill(victim, silo)
                    if lost is not None:
                        open_since = time.monotonic()
                        of = silo if victim in VICTIMS[:3] else ""
                        self.kills.append(Kill(victim, of, len(lines), lost, 0.0))
                        terminal.say(
                            f"kill {len(self.kills)}: {victim} {of} in round {len(lines) + 1}"
                        )
            self._watch(server)
        self._end()

    def _is_finished(self) -> bool:
        return (self.server_folder / "summary.json").is_file()

    def _rounds(self) -> list[dict[str, Any]]:
        path = self.server_folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line for line in map(json.loads, lines) if line["drawn"]]

    def _kill(self, victim: str, silo: str) -> int | None:
        """Kill, and start it again; returns the lost steps, or ``None`` without a victim."""
        federation = self.federation
        if victim == "trainer":
            if federation.processes[f"{silo}/trainer"].exitcode is not None:  # type: ignore[union-attr]
                return None
            federation.kill(f"{silo}/trainer")
            lost = max(self._batch(silo) - self._kept(silo), 0)
            federation.trainer(silo, self.yaml, *self.overrides)
            self._reached[silo] = 0
            return lost
        if victim == "supernode":
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
            return 0 if found else None
        return 0

    def _folder(self, silo: str) -> Path:
        return self.federation.folder / silo / "runs" / "demo"

    def _batch(self, silo: str) -> int:
        """The last batch that a trainer has trained."""
        return batch_reached(self._folder(silo))

    def _kept(self, silo: str) -> int:
        """The batch from which a trainer resumes."""
        checkpoints = self._folder(silo) / "checkpoints"
        found = [c for c in numbered_checkpoints(checkpoints) if is_whole(c[2])]
        rounds, batch, _ = found[-1] if found else (0, 0, None)
        files = SourceFiles(checkpoints / "sources")
        newest = [state for source in SILOS[silo] for state in files.states(source)[-1:]]
        return batch + sum(step for index, step in newest if index == rounds)

    def _note_lost(self) -> None:
        """A trainer that was not killed loses nothing; if one goes back, the last kill did it."""
        for silo in SILOS:
            now = self._batch(silo)
            self.kills[-1].lost += max(self._reached[silo] - now, 0)
            self._reached[silo] = now

    def _watch(self, server: Any) -> None:
        """End if nothing happens.

        Raises:
            SystemExit: with a sentence that says who does not answer.
        """
        for silo in SILOS:
            status = self.federation.processes[f"{silo}/trainer"].exitcode  # type: ignore[union-attr]
            if status:
                said = self.federation.log(silo, "trainer")[-1500:]
                raise SystemExit(f"{said}\nthe trainer of {silo} has ended with status {status}")
        seen = len(self._rounds()), len(self.kills), [self._batch(silo) for silo in SILOS]
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        elif time.monotonic() - self._seen_at > self.patience:
            last = {"the server": self.federation.log("server", "run").strip().splitlines()[-1:]}
            for silo in SILOS:
                for name in ("trainer", "supernode"):
                    lines = self.federation.log(silo, name).strip().splitlines()
                    last[f"the {name} of {silo}"] = lines[-1:]
            said = "\n".join(
                f"{who}: {line[0] if line else 'nothing'}" for who, line in last.items()
            )
            kill = self.kills[-1] if self.kills else "no kill"
            raise SystemExit(
                f"{said}\nround {seen[0] + 1} has not advanced for {self.patience:.0f} s after "
                f"{kill}; above is what each process has said last; the server's run has "
                f"{'ended' if server.poll() is not None else 'not ended'}"
            )

    def _end(self) -> None:
        for silo in SILOS:
            trainer = self.federation.processes[f"{silo}/trainer"]
            trainer.join(self.patience)  # type: ignore[union-attr]
            if trainer.exitcode is None:  # type: ignore[union-attr]
                raise SystemExit(f"the trainer of {silo} has not ended after the last round")


def victim_of(index: int, victims: Sequence[str], seed: int) -> tuple[str, str]:
    """The victim of a kill, and the silo: each victim once, in random order, and again.

    Args:
        index: number of the kill, from 0.
        victims: kinds to choose from.
        seed: of the draw.
    """
    turn, place = divmod(index, len(victims))
    silo = random.Random(f"{seed} silo {index}").choice([*SILOS])
    return random.Random(f"{seed} {turn}").sample(list(victims), len(victims))[place], silo


def _is_app(process: psutil.Process, name: str) -> bool:
    try:
        return any(f"flwr-{name}" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _show(kills: Sequence[Kill], history: Sequence[dict[str, Any]], local_steps: int) -> float:
    """Show what was lost; returns the goodput."""
    rows = Table()
    heads = (
        "victim",
        "kills",
        "steps lost, mean",
        "most",
        "seconds to the end of the round, median",
    )
    for head in (*heads, "most"):
        rows.add_column(head, justify="right")
    undisturbed = [line["seconds"] for line in history if line["drawn"]]
    for victim in VICTIMS:
        of = [kill for kill in kills if kill.victim == victim]
        if of:
            lost, seconds = [k.lost for k in of], [k.seconds for k in of]
            numbers = f"{statistics.mean(lost):.1f}", str(max(lost))
            times = f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}"
            rows.add_row(victim, str(len(of)), *numbers, *times)
    terminal.show(rows)
    goodput = goodput_of(kills, history, local_steps)
    terminal.say(
        f"{len(kills)} kills in {len(undisturbed)} rounds, one of which takes "
        f"{statistics.median(undisturbed):.0f} s; {sum(kill.lost for kill in kills):,} steps were "
        f"trained again. Goodput {100 * goodput:.1f} %"
    )
    return goodput


def goodput_of(kills: Sequence[Kill], history: Sequence[dict[str, Any]], local_steps: int) -> float:
    """The share of trained steps, and so of tokens, that reached the global model.

    Args:
        kills: with the steps that each has cost.
        history: what the server has written about each round.
        local_steps: of each source in a round.
    """
    reached = local_steps * sum(len(line["averaged"]) for line in history)
    return reached / (reached + sum(kill.lost for kill in kills))


if __name__ == "__main__":
    sys.exit(main())
