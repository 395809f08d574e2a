"""The files of a run: its resolved config at the start, its summary at the end."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.interfaces import CallbackWithConfig
from omegaconf import OmegaConf

from dept.checkpoint import durable
from dept.costs.transport import every_step_bytes
from dept.data.mixture import Mixture
from dept.errors import NotSaved
from dept.training.algorithm import Dept, dept_of
from dept.training.passes import passes
from dept.training.run import Run
from dept.training.source_metrics import SourceMetrics, average
from dept.training.summary import show

SUMMARY, CONFIG = "summary.json", "config.yaml"


class RunFiles(CallbackWithConfig):
    """Writes ``config.yaml`` and ``summary.json``, and prints the table of the summary.

    Args:
        train_config: the resolved config, given by llm-foundry.
        folder: folder of the files; ``{run_name}`` stands for the name of the run.
    """

    def __init__(self, train_config: dict[str, Any], folder: str = "runs/{run_name}") -> None:
        self.config = train_config
        self.folder = Path(folder)

    def init(self, state: State, logger: Logger) -> None:
        self.folder = Path(str(self.folder).format(run_name=state.run_name))
        logger.log_hyperparameters(self.config)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            _write(self.folder / CONFIG, OmegaConf.to_yaml(self.config))

    def fit_end(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            summary = summarise(state, self.config)
            _write(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
            show(summary, self.folder)


def _write(path: Path, content: str) -> None:
    try:
        durable.write(path, content)
    except OSError as error:
        raise NotSaved(
            f"{path} could not be written ({error.strerror}): make room on that disk; the same "
            f"command resumes from the last checkpoint"
        ) from error


def summarise(state: State, config: dict[str, Any]) -> dict[str, Any]:
    """The contents of ``summary.json``: everything that a comparison of runs needs.

    Args:
        state: the state of Composer's trainer. Its callbacks must include ``SourceMetrics``.
        config: the resolved yaml.

    Returns:
        Values that JSON can hold. Times are in seconds, and memory in bytes of this process.
    """
    metrics = next(c for c in state.callbacks if isinstance(c, SourceMetrics))
    dept = dept_of(state)
    run = None if dept is None else dept.run
    entries: dict[str, Any] = {"sources": {}, "held_out": {}}
    read = _passes(state, run)
    for name, result in metrics.latest.items():
        entry = {"vocab_size": metrics.vocab_sizes[name]}
        if run is not None and name not in metrics.held_out:
            entry |= {
                "vocab_size": run.slots.vocabularies[name].rows,
                "rounds_trained": run.totals["rounds_trained"].get(name, 0),
                "tokens": run.totals["tokens"].get(name, 0),
            }
        if name in read:
            entry["passes"] = read[name]
        kind = "held_out" if name in metrics.held_out else "sources"
        entries[kind][name] = entry | {"eval": asdict(result)}
    trained = [r for name, r in metrics.latest.items() if name not in metrics.held_out]
    seconds = state.timestamp.total_wct.total_seconds()
    tokens = sum(run.totals["tokens"].values()) if run else state.timestamp.token.value
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    variables = config.get("variables") or {}
    return {
        "variant": run.options.variant if run else variables.get("method", "std"),
        "method": variables.get("method", "std"),
        "seed": config["seed"],
        "rounds": state.timestamp.epoch.value,
        "local_steps": run.options.local_steps if run else int(state.dataloader_len or 0),
        "workers": run.workers.count if run else dist.get_world_size(),
        "ranks_per_worker": run.workers.place.ranks if run else 1,
        "sources_per_round": run.schedule.sources_per_round if run else len(entries["sources"]),
        "tokens": tokens,
        "steps": _steps(run) if run else state.timestamp.batch.value,
        "left_out": run.totals["left_out"] if run else [],
        "source_changes": _source_changes(run) if run else [],
        "privacy": _privacy(run) if run else None,
        "local_privacy": _local_privacy(dept) if dept else None,
        **entries,
        "average": asdict(average(trained)) if trained else None,
        "communication": _communication(run, state),
        "timing": {
            "train_seconds": seconds,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "swap_seconds": run.totals["swap_seconds"] if run else 0.0,
            "outer_step_seconds": run.totals["outer_step_seconds"] if run else 0.0,
            "wait_seconds": run.totals["wait_seconds"] if run else [],
        },
        "peak_memory_bytes": memory,
    }


def _steps(run: Run) -> int:
    """Local steps of all slots of all workers."""
    return sum(run.totals["rounds_trained"].values()) * run.options.local_steps


def _privacy(run: Run) -> dict[str, Any] | None:
    """The guarantee of the global model, for the source that was drawn most often."""
    privacy = run.reductions.aggregation.privacy
    if privacy is None:
        return None
    clip = run.options.clip_update_norm
    return {**vars(privacy), "clip_update_norm": clip, "epsilon": run.epsilon}


def _local_privacy(dept: Dept) -> dict[str, Any] | None:
    """The guarantee of each source of a silo for all that it has sent."""
    if dept.silo is None or dept.silo.privacy is None:
        return None
    return dept.silo.ledger.summary()


def _source_changes(run: Run) -> list[dict[str, Any]]:
    """The periods that began with other sources: their first round, from 1, and those sources."""
    return [
        {
            "round": period.first + 1,
            "sources": list(period.sources),
            "sources_per_round": period.sources_per_round,
        }
        for period in run.schedule.periods[1:]
    ]


def _passes(state: State, run: Run | None) -> dict[str, float]:
    """Passes over each source, if the run reads sources of a prepared corpus."""
    if run is not None:
        sizes = {name: p.splits["train"].tokens for name, p in run.loader.prepared.items()}
        return passes(run.totals["tokens"], sizes)
    mixture = getattr(state.train_dataloader, "dataset", None)
    if not isinstance(mixture, Mixture):
        return {}
    sizes = {name: source.order.samples for name, source in mixture.sources.items()}
    return passes(mixture.positions, sizes)


def _communication(run: Run | None, state: State) -> dict[str, Any]:
    """The communication of workers, and of each source with the average.

    ``sent_bytes``: bytes that all workers together sent at outer steps; ``other_bytes``: at the
    start and for metrics. ``parameters_per_step``, as in the paper: parameters that a source
    communicates, divided by its local steps, whichever worker trains it; an averaged moment counts
    as many as the parameters that it is of. ``reduction``: size of the
    whole model, whose gradients would otherwise be communicated, divided by that.
    ``bytes_per_exchange`` and ``byte_reduction``: the same in bytes of coded updates.
    ``every_step_bytes``: bytes of gradients in the same steps, if every worker trained the model
    with all tokens of the global tokenizer (a ring all-reduce in float32).
    """
    if run is None:
        parameters = sum(p.numel() for p in state.model.parameters())
        ranks = dist.get_world_size()
        return {
            "sent_bytes": 0 if ranks == 1 else None,  # DDP does not report it
            "other_bytes": 0,
            "sent_bytes_per_round": 0 if ranks == 1 else None,
            "parameters_per_step": parameters,
            "every_step_bytes": every_step_bytes(parameters, ranks, state.timestamp.batch.value),
            "reduction": None,
            "bytes_per_exchange": 4 * parameters,
            "byte_reduction": None,
        }
    sent, rounds = run.totals["sent_bytes"], max(state.timestamp.epoch.value, 1)
    trained = run.totals["rounds_trained"]
    slots = max(sum(trained.values()), 1)
    per_step = run.totals["communicated"] / slots / run.options.local_steps
    coded = run.totals["message_bytes"] / slots
    built = run.slots.built_parameters
    return {
        "sent_bytes": sent,
        "other_bytes": run.totals["other_bytes"],
        "sent_bytes_per_round": sent / rounds,
        "parameters_per_step": per_step,
        "every_step_bytes": every_step_bytes(
            built, run.workers.count, run.schedule.batches_before(rounds)
        ),
        "reduction": built / per_step if per_step else None,
        "bytes_per_exchange": coded,
        "byte_reduction": 4 * built * run.options.local_steps / coded if coded else None,
    }
