"""Checks of the options of `algorithms.dept` together, and with the rest of the yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from dept.config.federation_options import check_silo
from dept.config.options import DeptOptions
from dept.errors import ConfigError
from dept.method.compression import Compression
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizer
from dept.method.presets import PRESETS
from dept.method.sampling import UNIFORM
from dept.method.schedule import RoundSchedule
from dept.transport.topology import Place

SHARED_FOLDER = (
    "set save_folder to a folder that all machines share, or algorithms.dept.sampling to stratified"
)


def schedule_of(
    config: Mapping[str, Any], dept: DeptOptions, names: Sequence[str], workers: int
) -> RoundSchedule:
    """The schedule of a resolved yaml.

    Args:
        config: the resolved yaml, for its ``seed``.
        dept: options of ``algorithms.dept``.
        names: names of the sources to train, in the order of the corpus.
        workers: number of workers of the job.

    Raises:
        ValueError: no schedule fits these numbers of sources and workers.
    """
    drawn = None if dept.federation is not None else dept.sources_per_round  # the server draws
    return RoundSchedule(
        sources=tuple(names),
        sources_per_round=drawn or len(names),
        local_steps=dept.local_steps,
        seed=config.get("seed", 17),
        workers=workers,
        sampling=dept.sampling,
    )


def note_on_chances(schedule: RoundSchedule) -> list[str]:
    """A note if some sources are drawn more often than others; otherwise an empty list."""
    sources_of: dict[Fraction, list[str]] = {}
    for source, chance in schedule.chances.items():
        sources_of.setdefault(chance, []).append(source)
    if len(sources_of) == 1:
        return []
    chances = [f"{chance} for {', '.join(names)}" for chance, names in sources_of.items()]
    return [
        f"algorithms.dept.sampling is stratified, and {schedule.workers} workers cannot have equal "
        f"groups of sources: the chance of a source to be in a round is {'; '.join(chances)}"
    ]


def check(config: Mapping[str, Any], dept: DeptOptions, names: Sequence[str]) -> RoundSchedule:
    """Refuse options of DEPT that do not fit together, or the rest of the yaml.

    Args:
        config: a resolved yaml, whose options were checked.
        dept: options of ``algorithms.dept``.
        names: names of the sources to train, in the order of the corpus.

    Returns:
        The schedule of the run.

    Raises:
        ConfigError: two values do not fit together.
    """
    place = Place.of(os.environ, dept.ranks_per_worker)
    if dept.federated is not None:
        check_silo(config, dept.federated, names, place.workers, is_open=dept.allow_source_changes)
        dept.federated.noise()
    schedule = schedule_of(config, dept, names, place.workers)
    if schedule.moves and not config.get("save_folder"):
        raise nowhere(place.workers)
    _check_outer_optimizer(dept.outer_optimizer, by_row=dept.sharing.averages_by_row)
    Compression.of(dept.compression)
    everyone = schedule.sources if dept.federated is None else dept.federated.sources
    dept.aggregation().rule.check(dept.sources_per_round or len(everyone))
    duration = config["max_duration"]
    if not _rounds(duration):
        raise ConfigError(
            f"max_duration is {duration!r}: give DEPT a whole number of rounds, such as 10ep"
        )
    batch = config["global_train_batch_size"]
    if batch % dept.ranks_per_worker:
        raise ConfigError(
            f"global_train_batch_size, the batch of one worker, is {batch!r}: set it to a multiple "
            f"of ranks_per_worker = {dept.ranks_per_worker}"
        )
    if config.get("tp_config"):
        raise ConfigError(
            "tp_config is set, and tensor parallelism cannot replace embeddings by others of "
            "another size: remove it, fsdp_config shards the model over the ranks of a worker"
        )
    if (config.get("fsdp_config") or {}).get("state_dict_type", "full") != "full":
        raise ConfigError(
            "fsdp_config.state_dict_type is not full, and DEPT saves whole parameters: remove it"
        )
    if config.get("spin_dataloaders"):
        raise ConfigError("spin_dataloaders: true skips batches on resume: set it to false")
    if config.get("train_subset_num_batches", -1) != -1:
        raise ConfigError(
            "train_subset_num_batches would cut rounds short: remove it, and set "
            "algorithms.dept.local_steps"
        )
    return schedule


def _rounds(duration: Any) -> bool:
    text = str(duration)
    return text.endswith("ep") and text[:-2].isdigit() and int(text[:-2]) > 0


def _check_outer_optimizer(options: Mapping[str, Any], *, by_row: bool) -> None:
    """Test a step of the outer optimizer, if its class is known without llm-foundry."""
    if "classes" in options:
        raise ConfigError("algorithms.dept.outer_optimizer has no option classes: remove it")
    if options["name"] not in (*PRESETS, *OUTER_OPTIMIZERS):
        return
    optimizer = OuterOptimizer(**options)
    optimizer.check_step()
    if by_row:
        optimizer.check_by_row()


def nowhere(workers: int) -> ConfigError:
    """The error about a run whose sources move between workers, but which saves no files."""
    return ConfigError(
        f"algorithms.dept.sampling is {UNIFORM}, so any of the {workers} workers may train any "
        f"source, whose state it reads from checkpoints/sources of the run, and this run saves "
        f"nothing: {SHARED_FOLDER}"
    )
