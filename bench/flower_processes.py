"""The processes of a federation on one machine: SuperLink, and per silo a SuperNode and a trainer.

Each silo has a folder of its own, as if it were a machine: its part of the corpus, its runs, its
keys. Trainers are forked from a process that has done their imports.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
from meter import Meter

from dept.transport.flower.keys import CA, CERTIFICATE, KEY, make_server, make_silo

REPOSITORY = Path(__file__).parents[1]
APP = REPOSITORY / "dept" / "transport" / "flower" / "app"
CONNECTION = "federation"
PATIENCE = 600.0
"""Seconds to wait for a command of Flower."""

IMPORTS = ["dept.training.command", "dept.training.registration", "llmfoundry.command_utils"]


def split_corpus(root: Path, corpus: str, sources: Sequence[str], to: Path) -> None:
    """Copy the shards and tokenizers of some sources of a prepared corpus, and no text.

    Args:
        root: folder that has ``data/`` and ``tokenizers/``.
        corpus: name of the corpus.
        sources: the sources to copy.
        to: folder of the silo, which gets its own ``data/`` and ``tokenizers/``.
    """
    data, tokenizers = Path("data") / corpus, Path("tokenizers") / corpus
    found = json.loads((root / data / "corpus.json").read_text())
    kept = {name: t for name, t in found["tokenizers"].items() if name in ("global", *sources)}
    for name in kept:
        shutil.copytree(root / tokenizers / name, to / tokenizers / name, dirs_exist_ok=True)
    for source in sources:
        for tokenizer in ("global", source):
            if (root / data / source / tokenizer).is_dir():
                part = data / source / tokenizer
                shutil.copytree(root / part, to / part, dirs_exist_ok=True)
    found |= {"sources": list(sources), "held_out": [], "tokenizers": kept}
    (to / data / "corpus.json").write_text(json.dumps(found))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end_in_order() -> None:
    """Let SIGTERM raise ``SystemExit``, so that the processes that were started are ended too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def answers(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], seconds: float = 600.0) -> bool:
    """Wait until a condition holds, at most ``seconds``; returns whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


class Federation:
    """A federation whose parties are folders below one folder.

    Args:
        folder: the folder.
        silos: sources of each silo, by name.
        sockets: folder of the sockets, whose path must be short.
    """

    def __init__(self, folder: Path, silos: Mapping[str, Sequence[str]], sockets: Path) -> None:
        self.folder, self.silos, self.sockets = folder.absolute(), dict(silos), sockets
        self.port = free_port()
        self.meters = {name: Meter(self.port) for name in silos}
        self.processes: dict[str, subprocess.Popen | multiprocessing.process.BaseProcess] = {}
        self._again: dict[str, Callable[[], object]] = {}
        for name in ("server", *silos):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        keys = self.folder / "server" / "keys"
        if not (keys / CA).is_file():
            make_server(["localhost"], keys)
        self.authority = keys / CA
        for name in silos:
            if not (self.folder / name / "keys" / f"{name}.pub").is_file():
                make_silo(name, self.folder / name / "keys")

    def start(self, name: str, command: Sequence[str], party: str) -> subprocess.Popen:
        """Start a command in the folder of a party, with its log beside it.

        Args:
            name: name of the process, and of its log.
            command: the command line.
            party: ``server`` or a silo.
        """
        (self.folder / party).mkdir(exist_ok=True)
        with open(self.folder / party / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                list(command),
                cwd=self.folder / party,
                env=self._environment(party),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[f"{party}/{name}"] = process
        self._again[f"{party}/{name}"] = partial(self.start, name, command, party)
        return process

    def superlink(self) -> subprocess.Popen:
        """Start the SuperLink."""
        keys = self.folder / "server" / "keys"
        command = [sys.executable, "-m", "dept.transport.flower.superlink"]
        command += ["--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE)]
        command += ["--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--database", str(self.folder / "server" / "superlink.db")]
        process = self.start("superlink", command, "server")
        self._again["server/superlink"] = self.superlink  # which waits until it answers
        wait_until(lambda: answers(self.port) or process.poll() is not None)
        return process

    def register(self, silo: str) -> None:
        """Register the public key of a silo at the SuperLink.

        Raises:
            RuntimeError: Flower refuses it.
        """
        key = self.folder / silo / "keys" / f"{silo}.pub"
        said = self._flwr("supernode", "register", str(key), CONNECTION)
        if "registered successfully" not in said:
            raise RuntimeError(said)

    def supernode(self, silo: str) -> subprocess.Popen:
        """Start the SuperNode of a silo."""
        command = [sys.executable, "-m", "dept.transport.flower.supernode"]
        command += ["--root-certificates", str(self.authority), "--superlink", self.address(silo)]
        key = self.folder / silo / "keys" / f"{silo}.key"
        command += ["--auth-supernode-private-key", str(key)]
        command += ["--host", "127.0.0.1", "--port", str(free_port())]
        command += ["--node-config", f'socket="{self.socket(silo)}"']
        return self.start("supernode", command, silo)

    def trainer(self, silo: str, yaml: Path, *overrides: str, ranks: int = 1) -> None:
        """Start the trainer of a silo.

        Args:
            silo: its name.
            yaml: the experiment.
            overrides: ``key=value`` each, beside those that name the silo.
            ranks: how many processes train together.
        """
        own = [
            f"algorithms.dept.federation.silo={silo}",
            f"algorithms.dept.federation.socket={self.socket(silo)}",
        ]
        if ranks > 1:
            own.append(f"algorithms.dept.ranks_per_worker={ranks}")
        self.train(silo, str(yaml), *overrides, *own, ranks=ranks)

    def train(
        self, party: str, *command: str, ranks: int = 1
    ) -> multiprocessing.process.BaseProcess:
        """Start `train.py` in the folder of a party.

        Args:
            party: name of the folder.
            command: arguments of `train.py`.
            ranks: how many processes train together, as those of `composer -n`.

        Returns:
            The first process.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            place |= {"LOCAL_WORLD_SIZE": ranks}
            given = address | {key: str(value) for key, value in place.items()}
            arguments = (self.folder / party, list(command), given if ranks > 1 else {})
            process = context.Process(target=_train, args=arguments, daemon=True)
            process.start()
            self.processes[f"{party}/trainer" + (f"-{rank}" if rank else "")] = process
        self._again[f"{party}/trainer"] = partial(self.train, party, *command, ranks=ranks)
        return self.processes[f"{party}/trainer"]  # type: ignore[return-value]

    def serve(self, yaml: Path, *overrides: str, app: Path = APP) -> subprocess.Popen:
        """Submit the ServerApp; the process ends with it.

        Args:
            yaml: the experiment.
            overrides: ``key=value`` each.
            app: folder of the app of Flower.
        """
        self._connect()
        given = self.folder / "server" / "run.toml"
        lines = {"yaml": str(yaml), "overrides": shlex.join(overrides)}
        given.write_text("".join(f"{name} = {json.dumps(v)}\n" for name, v in lines.items()))
        command = ["flwr", "run", str(app), CONNECTION, "--stream", "--run-config", str(given)]
        return self.start("run", command, "server")

    def _connect(self) -> None:
        """Let Flower's commands know the SuperLink."""
        home = self.folder / "server" / "flower"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.authority}"\n'
        )

    def _flwr(self, *arguments: str) -> str:
        self._connect()
        environment = self._environment("server")
        command = [str(Path(sys.executable).with_name("flwr")), *arguments]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise SystemExit(
                f"flwr {' '.join(arguments[:2])} has not ended within {PATIENCE:.0f} s: the "
                f"SuperLink does not answer, or this machine has no time for it"
            ) from None
        return done.stdout + done.stderr

    def address(self, silo: str) -> str:
        """The address at which a silo reaches the SuperLink, through a meter."""
        return f"127.0.0.1:{self.meters[silo].port}"

    def socket(self, silo: str) -> Path:
        """The socket of a silo."""
        return self.sockets / f"{silo}.sock"

    def log(self, party: str, name: str) -> str:
        """The log of a process."""
        path = self.folder / party / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def family(self, name: str) -> list[psutil.Process]:
        """A process and all processes that it has started."""
        process = self.processes[name]
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def revive(self) -> list[str]:
        """Start again what was killed, except the server's run; returns the names of processes."""
        found = []
        for name, process in list(self.processes.items()):
            if isinstance(process, subprocess.Popen):
                has_died = bool(process.poll()) and name != "server/run"
            else:
                has_died = (process.exitcode or 0) < 0  # otherwise it has ended with an error
            if has_died and name in self._again:
                self._again[name]()
                found.append(name)
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and to all that it has started."""
        for process in self.family(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if number == signal.SIGKILL:
            process = self.processes.pop(name)
            process.wait() if isinstance(process, subprocess.Popen) else process.join()

    def close(self) -> None:
        """End all processes."""
        for name in list(self.processes):
            self.kill(name)
        for meter in self.meters.values():
            meter.close()

    def _environment(self, party: str) -> dict[str, str]:
        own = Path(sys.executable).parent
        return {
            **os.environ,
            "PATH": f"{own}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(self.folder / party / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
        }


def _train(folder: Path, command: list[str], place: dict[str, str]) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the trainer has its own
    log = os.open("trainer.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"):
        os.environ.pop(name, None)
    os.environ.update(place)
    from dept.training.arguments import main

    sys.exit(main(command))
