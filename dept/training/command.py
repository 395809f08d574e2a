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
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

# Before torch is imported: threads that wait by spinning make a CPU that other work shares up to
# eight times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread for each process, as torchrun has it: sums in torch depend on the number of threads,
# and a run must give the same numbers on any number of workers and of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dept.checkpoint import remote_checkpoints, run_folder, trust
from dept.checkpoint.remote_folder import RemoteFolder
from dept.config import complete as configs
from dept.config import extends, provenance
from dept.costs import machine
from dept.errors import ConfigError, DataError, NotSaved, NumericalFault, WorkerLost
from dept.training import build_errors, preflight, scratch
from dept.training.summary import read_summary, show
from dept.transport import process_group
from dept.transport.launcher import end_with_launcher
from dept.transport.topology import Place

# What the pinned libraries say of themselves at import, or of each other, on every run.
NOISE = (
    "pkg_resources is deprecated",
    "alibi or rope is turned on",
    "Cannot split tensor of length",
)
NOISE += ("To copy construct from a tensor",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment; returns the exit status."""
    chosen = parser().parse_args(arguments)
    arguments = [chosen.yaml, *chosen.overrides]
    if chosen.debug:
        os.environ["DEPT_DEBUG"] = "1"
    if chosen.print:
        return _print(chosen.yaml, chosen.overrides)
    if chosen.check:
        return preflight.main(chosen.yaml, chosen.overrides, chosen.workers)
    end_with_launcher()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        config = extends.load(arguments[0], arguments[1:])
        plain = extends.resolve(config)
        trust.guard()
        trust.check(plain)
        notes = configs.check(plain)
        machine.check(plain)
        folder = run_folder.folder_of(plain)
        lock = run_folder.hold(folder) if is_first and plain.get("save_folder") else None
        finished = look_into(folder, plain, is_first)
        for note in notes if is_first and finished is None else ():
            print(f"{arguments[0]}: {note}", file=sys.stderr)
    except (ValueError, OSError) as error:
        # Every process comes to the same end; one says so.
        if is_first:
            print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    scratch.enter()  # while LOCAL_RANK is still that of the machine, not of the worker
    try:
        everyone = meet(plain)
        if everyone.value_of_first(finished is not None, stage="the start"):
            if is_first:
                print(f"{folder} is finished; set another run_name to train again", file=sys.stderr)
                show(finished, folder)
            return 0
        pretrain(config)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:  # by Composer's handler: let its user know
            print(
                f"{arguments[0]}: ended by SIGTERM, as a scheduler sends it, or the launcher when "
                f"another process died; the same command goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        raise
    except (DataError, ConfigError, pickle.UnpicklingError) as error:  # of what is read only now
        said = trust.say(error) if isinstance(error, pickle.UnpicklingError) else error
        print(f"{arguments[0]}: {said}", file=sys.stderr, flush=True)
        return 2
    except (NotSaved, NumericalFault) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr, flush=True)
        return 1
    except WorkerLost as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # an orderly end would wait for the lost worker too
    except Exception as error:
        said = None if os.environ.get("DEPT_DEBUG") else build_errors.sentence(error, plain)
        if said is None:
            raise
        print(f"{arguments[0]}: {said}", file=sys.stderr, flush=True)
        return 1
    finally:
        if lock is not None:
            lock.lock.release()
    return 0


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
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    return 0


def look_into(folder: Path, config: dict, is_first: bool) -> dict | None:
    """Look at what an earlier job left, here or remotely; the summary if the run is finished."""
    checkpoints, address = run_folder.checkpoints_of(config), run_folder.remote_of(config)
    remote = RemoteFolder(checkpoints, address) if address and is_first else None
    if remote is not None:
        remote.check()
    if not config.get("autoresume"):
        return None
    run_folder.refuse_other_settings(configs.complete(deepcopy(config)), folder / "config.yaml")
    for path in run_folder.recover(checkpoints) if is_first else ():
        print(f"{path} was cut short by a kill and is left aside", file=sys.stderr)
    if remote is not None:
        dept, _ = configs.options_of(config)
        for said in remote_checkpoints.bring(remote, with_sources=dept and dept.upload_sources):
            print(said, file=sys.stderr)
    newest = checkpoints / "latest-rank0.pt"
    if newest.is_file():
        trust.refuse_code(newest.resolve())
    summary = read_summary(folder / "summary.json")
    return summary if summary and f"{summary['rounds']}ep" == str(config["max_duration"]) else None


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
