"""The parties of a federation without Flower: trainers in processes, the server in this one."""

import tempfile
from pathlib import Path

from flower_processes import REPOSITORY, Federation, split_corpus
from socket_grid import SocketGrid
from training import DEPT, MPT, ROUNDS

from dept.checkpoint.source_files import SourceFiles
from dept.config import extends
from dept.training.federation import server_app

SILOS = {"left": ["manual", "code"], "middle": ["mail"], "right": ["tools"]}
SOURCES = [source for sources in SILOS.values() for source in sources]
NESTEROV = "algorithms.dept.outer_optimizer.name=nesterov"


class Parties(Federation):
    """Trainers in processes of their own, and the server in this one."""

    def __init__(self, prepared, folder):
        super().__init__(folder, SILOS, Path(tempfile.mkdtemp(prefix="silos")))
        for silo, sources in SILOS.items():
            split_corpus(prepared, "tiny", sources, folder / silo)

    def options(self, name, *more):
        common = ["variables.corpus=tiny", "max_seq_len=32", f"max_duration={ROUNDS}ep"]
        sources = f"algorithms.dept.federation.sources=[{','.join(SOURCES)}]"
        return [*common, *MPT, *DEPT, sources, f"run_name={name}", *more]

    def start_trainer(self, silo, experiment, name, *more, ranks=1):
        yaml = REPOSITORY / "yamls" / "federation" / f"{experiment}.yaml"
        self.trainer(silo, yaml, *self.options(name, *more), ranks=ranks)

    def serve_here(
        self,
        experiment,
        name,
        *more,
        before_push=lambda parcel, node: None,
        watched=tuple(SILOS),
        prepare=lambda grid: None,
    ):
        """Run the server; returns its state and its grid. Trainers that are watched do not fail.

        ``prepare`` may change the grid before the server sees it.
        """
        yaml = REPOSITORY / "yamls" / "federation" / f"{experiment}.yaml"
        folder = f"callbacks.run_files.folder={self.folder}/server/runs/{name}"
        config = extends.resolve(extends.load(yaml, [*self.options(name, *more), folder]))
        sockets = [self.socket(silo) for silo in SILOS]
        grid = SocketGrid(sockets, before_push, lambda: self.check(watched))
        prepare(grid)
        return server_app.serve(grid, config), grid

    def train_all(self, experiment, name, *more, before_push=lambda parcel, node: None):
        for silo in SILOS:
            self.start_trainer(silo, experiment, name, *more)
        found = self.serve_here(experiment, name, *more, before_push=before_push)
        self.end(name)
        return found

    def check(self, silos):
        """A trainer that has failed would be waited for until the round's timeout."""
        for silo in silos:
            trainer = self.processes.get(f"{silo}/trainer")
            failed = trainer is not None and (trainer.exitcode or 0) > 0  # below 0: it was killed
            assert not failed, self.log(silo, "trainer")[-5000:]

    def end(self, name):
        for silo in SILOS:
            trainer = self.processes[f"{silo}/trainer"]
            trainer.join(300)
            assert trainer.exitcode == 0, self.log(silo, "trainer")[-5000:]

    def files(self, silo, name):
        return SourceFiles(self.folder / silo / "runs" / name / "checkpoints" / "sources")

    def newest(self, name):
        """The newest state of each source."""
        found = {}
        for silo, sources in SILOS.items():
            files = self.files(silo, name)
            for source in filter(files.states, sources):  # others were never drawn
                found[source] = files.load(source, files.states(source)[-1])
        return found

    def learned(self, name, state):
        found = {f"global/{key}": value.numpy() for key, value in state.theta.items()}
        for source, newest in self.newest(name).items():
            for key, value in (newest["slots"]["private"] or {}).items():
                found[f"{source}/{key}"] = value.numpy()
        return found
