"""The ServerApp: `flwr run dept/transport/flower/app -c 'yaml="..." overrides="..."'`.

It needs torch, and neither llm-foundry nor any text: the global model comes from the first silo.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in train.py, before torch is imported

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from omegaconf import OmegaConf
from safetensors.torch import save_file

from dept.checkpoint import durable, run_folder
from dept.config import extends
from dept.config.federation_terms import terms
from dept.config.options import DeptOptions, options_of
from dept.errors import ConfigError
from dept.log import log
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizer
from dept.method.presets import PRESETS
from dept.training.federation.server import Server, model_of
from dept.training.federation.server_files import ServerFiles, ServerState
from dept.transport.flower.silos import Silos

MODEL, SUMMARY = run_folder.SERVER_MODEL, "summary.json"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the federation of a yaml, or resume it.

    Args:
        grid: Flower's connection to the silos.
        context: its ``run_config`` has ``yaml`` and ``overrides``.
    """
    path = str(context.run_config["yaml"])
    overrides = shlex.split(str(context.run_config["overrides"]))
    try:
        config = extends.resolve(extends.load(path, overrides))
        serve(grid, config)
    except (ValueError, ArithmeticError, OSError) as error:
        log.error(f"{path}: {error}")
        raise


def serve(grid: Grid, config: Mapping[str, Any]) -> ServerState:
    """Train the federation of a resolved yaml, and write its model and its summary.

    Args:
        grid: Flower's connection to the silos.
        config: the resolved yaml, as plain containers.

    Returns:
        The state after the last round.

    Raises:
        ConfigError: the yaml is of no federation, or of another one than this folder holds.
    """
    dept, _ = options_of(config)
    if dept is None or dept.federated is None:
        raise ConfigError("the yaml has no algorithms.dept.federation: name one of a federation")
    if dept.federated.silo is not None:
        raise ConfigError(
            "algorithms.dept.federation.silo is for silos: leave it out at the server"
        )
    shared, folder = terms(config), run_folder.folder_of(config) / "server"
    rounds = str(config["max_duration"])
    if not rounds.endswith("ep") or not rounds[:-2].isdigit():
        raise ConfigError(f"max_duration is {rounds}: give a whole number of rounds, such as 10ep")
    with run_folder.hold(folder):
        files = ServerFiles(folder)
        state = files.load() or ServerState(terms=shared)
        for key in sorted({*state.terms, *shared}):
            if state.terms.get(key) != shared.get(key):
                raise ConfigError(
                    f"{folder} holds a federation with {key} = {state.terms.get(key)}, the yaml "
                    f"says {shared.get(key)}: set it back, or choose another run_name"
                )
        if state.round:
            log.info(f"{folder} resumes after round {state.round}")
        silos = Silos(
            grid,
            shared,
            dept.federated.sources,
            log.info,
            is_open=dept.allow_source_changes,
            model=model_of(state),
            is_new=state.round == 0,
            ttl=max(2 * dept.federated.round_timeout, 12 * 3600.0),
        )
        server = Server(
            options=dept,
            seed=int(config.get("seed", 17)),
            rounds=int(rounds[:-2]),
            silos=silos,
            files=files,
            outer_optimizer=_outer_optimizer(dept),
            state=state,
            say=log.info,
        )
        server.run()
        _write(folder, server, dept, config)
    return server.state


def _outer_optimizer(dept: DeptOptions) -> OuterOptimizer:
    classes = OUTER_OPTIMIZERS
    if dept.outer_optimizer["name"] not in (*PRESETS, *OUTER_OPTIMIZERS):
        from dept.training.registered import outer_optimizers  # llm-foundry takes half a minute

        classes = outer_optimizers(dept.outer_optimizer["name"])
    optimizer = OuterOptimizer(**dept.outer_optimizer, classes=classes)
    optimizer.check_step()
    if dept.sharing.averages_by_row:
        optimizer.check_by_row()
    return optimizer


def _write(folder: Path, server: Server, dept: DeptOptions, config: Mapping[str, Any]) -> None:
    state = server.state
    about = {
        "variant": dept.variant,
        "rounds": str(state.round),
        "sources": json.dumps(server.roster.sources),
        "tokenizer": state.model["tokenizer"],
    }
    durable.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    with durable.replacing(folder / MODEL) as temporary:
        tensors = {name: value.contiguous() for name, value in state.theta.items()}
        save_file(tensors, temporary, about)
    rounds = [line for line in state.history if line["drawn"]]
    summary = {
        "variant": dept.variant,
        "rounds": state.round,
        "local_steps": dept.local_steps,
        "sources": state.latest,
        "source_changes": server.roster.changes,
        "bytes_down": sum(line["bytes_down"] for line in rounds),
        "bytes_up": sum(line["bytes_up"] for line in rounds),
        "missing": {line["round"]: line["missing"] for line in rounds if line["missing"]},
        "history": state.history,
    }
    durable.write(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    log.info(f"{folder}: {MODEL}, {SUMMARY}, metrics.jsonl")
