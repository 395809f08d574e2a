"""Pre-train from a yaml: `composer -n 2 train.py yamls/dept_spec.yaml [key=value ...]`.

`-n W` trains W sources side by side, each process one worker; one process alone trains them in
turn, to the same numbers: `python train.py`. Several machines: docs/workers.md.

`python train.py --check yamls/X.yaml [key=value ...] [--workers W]` says in seconds whether it can
start, and why not. `--print` prints the yaml as it is trained from, with where each key comes from.
`--debug` shows where an error comes from that is otherwise one sentence.

Every yaml is an llm-foundry yaml; `extends: FILE` merges it over another, and `algorithms.dept` and
`train_loader: {name: sources}` are ours.
"""

import argparse
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

# Before torch is imported: threads that wait by spinning make a CPU that other work shares up to
# eight times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread for each process, as torchrun has it: sums in torch depend on the number of threads,
# and a run must give the same numbers on any number of workers and of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dept.checkpoint import run_folder, trust
from dept.config import complete as configs
from dept.config import extends, provenance
from dept.costs import machine
from dept.errors import ConfigError, DataError, NotSaved, NumericalFault, WorkerLost
from dept.log import log
from dept.training import build_errors, preflight, scratch
from dept.training.earlier_job import look_into
from dept.training.summary import show
from dept.transport import process_group
from dept.transport.launcher import end_with_launcher
from dept.transport.topology import Place

# Errors that end training in one sentence, and the exit status of each.
EXITS = {
    ConfigError: 2,  # of what is read only then
    DataError: 2,
    pickle.UnpicklingError: 2,
    NotSaved: 1,
    NumericalFault: 1,
    WorkerLost: 1,
}

# What the pinned libraries say of themselves at import, or of each other, on every run.
NOISE = (
    "pkg_resources is deprecated",
    "alibi or rope is turned on",
    "Cannot split tensor of length",
    "To copy construct from a tensor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment; returns the exit status."""
    chosen = parser().parse_args(arguments)
    if chosen.debug:
        os.environ["DEPT_DEBUG"] = "1"
    if chosen.print:
        return _print(chosen.yaml, chosen.overrides)
    if chosen.check:
        return preflight.main(chosen.yaml, chosen.overrides, chosen.workers)
    end_with_launcher()
    is_first = os.environ.get("RANK", "0") == "0"
    with ExitStack() as held:
        try:
            config = extends.load(chosen.yaml, chosen.overrides)
            plain = extends.resolve(config)
            trust.guard()
            trust.check(plain)
            notes = configs.check(plain)
            machine.check(plain)
            folder = run_folder.folder_of(plain)
            if is_first and plain.get("save_folder"):
                held.enter_context(run_folder.hold(folder))
            finished = look_into(folder, plain, is_first)
        except (ValueError, OSError) as error:
            if is_first:  # every process comes to the same end
                log.error(f"{chosen.yaml}: {error}")
            return 2
        for note in notes if is_first and finished is None else ():
            log.info(f"{chosen.yaml}: {note}")
        scratch.enter()  # while LOCAL_RANK is still that of the machine, not of the worker
        try:
            everyone = meet(plain)
            if everyone.value_of_first(finished is not None, stage="the start"):
                if is_first:
                    log.info(f"{folder} is finished; set another run_name to train again")
                    show(finished, folder)
                return 0
            pretrain(config)
        except SystemExit as stop:
            if stop.code == 128 + signal.SIGTERM:  # by Composer's handler, without a word
                log.error(
                    f"{chosen.yaml}: ended by SIGTERM, as a scheduler sends it, or the launcher "
                    f"when another process died; the same command resumes from the last checkpoint"
                )
            raise
        except Exception as error:
            said, status = ending(error, plain)
            if said is None:
                raise
            log.error(f"{chosen.yaml}: {said}")
            if isinstance(error, WorkerLost):
                os._exit(status)  # an orderly end would wait for the lost worker too
            return status
    return 0


def ending(error: Exception, config: Mapping[str, Any]) -> tuple[str | None, int]:
    """The sentence that ends training, if a traceback says no more, and the exit status."""
    for kind, status in EXITS.items():
        if isinstance(error, kind):
            return trust.say(error) if kind is pickle.UnpicklingError else str(error), status
    return None if os.environ.get("DEPT_DEBUG") else build_errors.sentence(error, config), 1


def parser() -> argparse.ArgumentParser:
    """The options beside the yaml and its overrides."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("yaml", help="the experiment")
    options.add_argument("overrides", nargs="*", help="key=value, over the yaml")
    options.add_argument("--print", action="store_true", help="print the resolved yaml, and end")
    options.add_argument("--check", action="store_true", help="look at all there is, and end")
    options.add_argument("--workers", type=int, help="side by side, for --check")
    options.add_argument("--debug", action="store_true", help="show tracebacks")
    return options


def _print(path: str, overrides: Sequence[str]) -> int:
    try:
        print(provenance.annotated(path, overrides), end="")
    except ConfigError as error:
        log.error(f"{path}: {error}")
        return 2
    return 0


def meet(config: dict) -> process_group.Workers:
    """Join the other workers, if this is a job of DEPT; else its processes are Composer's."""
    dept, _ = configs.options_of(config)
    if dept is None:
        return process_group.current()
    return process_group.join(Place.of(os.environ, dept.ranks_per_worker), dept.worker_timeout)


def pretrain(config) -> None:
    """Train with llm-foundry, with our names in its registries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")
    from llmfoundry.command_utils import train

    from dept.training import registration

    registration.register()
    train(config)


if __name__ == "__main__":
    sys.exit(main())
