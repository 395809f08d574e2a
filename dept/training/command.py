"""Run one experiment: check it, connect the workers, train, and say how it ended."""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from dept.training import environment  # noqa: F401 - before torch

# isort: split
from omegaconf import OmegaConf

from dept.checkpoint import library_patches, run_folder, trust
from dept.config import complete as configs
from dept.config import extends, provenance
from dept.config.federation_terms import difference, terms
from dept.costs import machine
from dept.errors import ConfigError, DataError, NotSaved, NumericalFault, WorkerLost
from dept.imports import without_collection
from dept.log import log
from dept.training import build_errors, preflight, scratch
from dept.training.earlier_job import look_into
from dept.training.on_machine import choose
from dept.training.summary import show
from dept.transport import process_group
from dept.transport.flower import link
from dept.transport.launcher import end_with_launcher
from dept.transport.topology import Place
from dept.transport.workers import Workers

# Errors that end training in one sentence, and the exit status of each.
EXITS = {
    ConfigError: 2,  # in what is read only during training
    DataError: 2,
    pickle.UnpicklingError: 2,
    NotSaved: 1,
    NumericalFault: 1,
    WorkerLost: 1,
}

# Warnings that the pinned libraries raise on every run, at import or about each other.
NOISE = (
    "pkg_resources is deprecated",
    "alibi or rope is turned on",
    "Cannot split tensor of length",
    "To copy construct from a tensor",
)


def run(chosen: argparse.Namespace) -> int:
    """Run one experiment; returns the exit status.

    Args:
        chosen: what ``dept.training.arguments`` has parsed.
    """
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
            chosen_here, on_machine = choose(plain)
            for key, value in chosen_here.items():
                OmegaConf.update(config, key, value, force_add=True)
            machine.check(plain)
            folder = run_folder.folder_of(plain)
            if is_first and plain.get("save_folder"):
                held.enter_context(run_folder.hold(folder))
            finished = look_into(folder, plain, is_first)
        except (ValueError, OSError) as error:
            if is_first:  # every process ends in the same way
                log.error(f"{chosen.yaml}: {error}")
            return 2
        for note in [on_machine, *notes] if is_first and finished is None else ():
            log.info(f"{chosen.yaml}: {note}")
        scratch.enter()  # before LOCAL_RANK is counted within the worker
        try:
            everyone = join_workers(plain)
            if everyone.value_of_first(finished is not None, stage="the start"):
                if is_first:
                    log.info(f"{folder} is finished; set another run_name to train again")
                    show(finished, folder)
                return 0
            pretrain(config)
        except SystemExit as stop:
            if stop.code == 128 + signal.SIGTERM:  # raised by Composer's handler without a message
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
    """The message for an error that ends training, or ``None`` for a traceback; the exit status.

    Args:
        error: what ended training.
        config: the resolved yaml.
    """
    for kind, status in EXITS.items():
        if isinstance(error, kind):
            return trust.say(error) if kind is pickle.UnpicklingError else str(error), status
    return None if os.environ.get("DEPT_DEBUG") else build_errors.sentence(error, config), 1


def _print(path: str, overrides: Sequence[str]) -> int:
    try:
        print(provenance.annotated(path, overrides), end="")
    except ConfigError as error:
        log.error(f"{path}: {error}")
        return 2
    return 0


def join_workers(config: dict) -> Workers:
    """Connect to the other workers in a job of DEPT; otherwise Composer has all processes.

    In a silo, the leading rank opens the socket on which the messages of the federation arrive.
    """
    dept, _ = configs.options_of(config)
    if dept is None:
        return process_group.current()
    place = Place.of(os.environ, dept.ranks_per_worker)
    if dept.federated is not None and place.rank == 0:
        path = dept.federated.socket.format(run_name=config.get("run_name"))
        link.join(link.Link(path, terms(config), difference))
    return process_group.join(place, dept.worker_timeout)


def pretrain(config) -> None:
    """Train with llm-foundry, with our names in its registries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}")
    library_patches.stand_in_for_missing()
    with without_collection():
        from llmfoundry import registry
        from llmfoundry.command_utils import train

        from dept.training import registration
        from dept.training.transform import transform

    registration.register()
    registry.config_transforms.register("dept", func=transform)  # an entry point, if installed
    train(config)
