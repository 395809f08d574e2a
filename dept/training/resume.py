"""Resume all workers from a checkpoint, which the first of them loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import State, Timestamp

from dept.checkpoint.source_files import FOLDER, SourceFiles
from dept.errors import ConfigError
from dept.training import moves, source_changes
from dept.training.run import Run


def agree(run: Run, state: State, loaded: Mapping[str, Any] | None) -> bool:
    """Give every worker the global model and its sources of the checkpoint.

    Args:
        run: the run of this worker.
        state: the state of Composer.
        loaded: the algorithm's state in the checkpoint, if the first worker has loaded one.

    Returns:
        Whether there is a checkpoint; :func:`enter_round` follows then.

    Raises:
        ConfigError: the state of a source is missing, or is of another tokenizer.
        WorkerLost: a worker did not arrive.
    """
    workers, slots, held = run.workers, run.slots, run.held
    here = {
        "round": state.timestamp.epoch.value,
        "in_round": state.timestamp.batch_in_epoch.value > 0,
        "from": state.load_path,
        "loaded": loaded,
    }
    first = workers.value_of_first(here, stage="the start")
    loaded, round_index = first["loaded"], first["round"]
    if loaded is not None:
        source_changes.adopt(run, loaded["periods"], round_index, first["in_round"])
    if run.schedule.moves:
        moves.check_folder(run)
    start = [slots.start[name] for name in sorted(slots.start)]
    workers.from_first(start, kind="start", stage="the start")
    moves.settle(run, round_index)
    is_silo = run.options.federation is not None
    if loaded is None:
        run.open_round()
        if is_silo and held.files is not None:
            for source in held.sources:  # a silo has sent what is there to its server
                _restore(run, source, held.files, 0, None)
        return False
    device = next(state.model.parameters()).device
    run.outer_optimizer.load_state_dict(loaded["outer_optimizer"], device=device)
    run.reductions.returned_error |= loaded["coding_error"]
    if slots.moments is not None:
        slots.moments.load_state_dict(loaded["moments"])
    run.totals |= loaded["totals"]
    run.totals["wait_seconds"] = [0.0] * workers.count
    run.open_round()
    files = SourceFiles(Path(first["from"]).parent / FOLDER)
    if "://" in first["from"] and held.files is not None:
        files = held.files
    drawn = run.schedule.drawn(round_index)
    for source in held.sources:
        # A slot may be of an earlier draw of this round, from other sources. A silo does not return
        # to a checkpoint with its job: the server may have its later slots.
        step = loaded["steps"].get(source) if source in drawn else 0
        _restore(run, source, files, round_index, None if is_silo else step)
    state.timestamp = state.timestamp.copy(epoch=round_index)
    return True


def enter_round(run: Run, state: State) -> None:
    """Continue the round that a checkpoint is in.

    Args:
        run: the run of this worker.
        state: the state of Composer, whose clock and learning rates are set.
    """
    round_index = state.timestamp.epoch.value
    run.start_pass(round_index)
    state.dataloader_len = run.schedule.batches_of(round_index)
    state.timestamp = _timestamp(run, state, round_index, sum(run.steps.values()))
    set_rates(state)


def set_rates(state: State) -> None:
    """Set the learning rates of the coming step, which no checkpoint has."""
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)


def _restore(run: Run, source: str, files: SourceFiles, round_index: int, step: int | None) -> None:
    """Restore a source from its file, for a checkpoint in ``round_index``."""
    trained = run.totals["last_round"].get(source, 0)
    found = files.read(source, round_index, step)
    if found is None and trained == 0:
        return
    where = files.folder / source
    if (found is None or found["last_round"] != trained) and run.held.fetch is not None:
        run.held.fetch(source, round_index)  # on another machine than the first worker
        found = files.read(source, round_index, step)
    if found is None or found["last_round"] != trained:
        kept = "" if run.options.upload_sources else ", from the machine that trained it"
        raise ConfigError(
            f"{where} lacks the state of {source} that the checkpoint of round {round_index} "
            f"belongs to: copy the folder beside the checkpoint{kept}"
        )
    if found["tokenizer"] != run.loader.prepared[source].tokenizer_hash:
        raise ConfigError(
            f"{where} is of another tokenizer than the shards of {source}: prepare the corpus as "
            f"it was, or choose another run_name"
        )
    run.take(source, found)
    own, slot = run.held.files, found["slot"]
    if own is not None and files.folder.resolve() == own.folder.resolve():
        run.held.in_file[source] = (found["round"], len(slot["losses"]) if slot else 0)
    else:  # a later checkpoint of this run must find the file in this run's folder
        run.held.changed.add(source)
    if found["round"] == round_index and slot is not None:
        run.take_slot(source, found)


def _timestamp(run: Run, state: State, round_index: int, batch_in_round: int) -> Timestamp:
    """Composer's clock of this worker, which may not have existed at the checkpoint."""
    batch = run.schedule.batches_before(round_index) + batch_in_round
    samples = run.loader.batch_size * run.workers.place.ranks
    tokens = samples * next(iter(run.loader.prepared.values())).sequence_length
    return state.timestamp.copy(
        epoch=round_index,
        epoch_in_iteration=round_index,
        batch=batch,
        batch_in_epoch=batch_in_round,
        sample=batch * samples,
        sample_in_epoch=batch_in_round * samples,
        token=batch * tokens,
        token_in_iteration=batch * tokens,
        token_in_epoch=batch_in_round * tokens,
    )


def identity(run: Run) -> dict[str, Any]:
    """The settings that a checkpoint and the run that resumes from it must have in common."""
    return {
        "variant": run.options.variant,
        "sources": list(run.schedule.sources),
        "sources_per_round": run.schedule.sources_per_round,
        "groups": run.schedule.groups,
        "local_steps": run.options.local_steps,
        "inner_state": run.options.inner_state,
        "inner_state_interval": run.options.moment_interval or None,
        "compression": dict(run.options.compression),
        "average": dict(run.options.average),
        "clip_update_norm": run.options.clip_update_norm,
        "privacy": run.options.privacy and dict(run.options.privacy),
        "block_shards": run.loader.block_shards,
        "tokenizers": {n: run.loader.prepared[n].tokenizer_hash for n in run.schedule.sources},
    }


def state_of(run: Run) -> dict[str, Any]:
    """The state that all workers share, except global parameters and files of sources.

    Raises:
        RuntimeError: a slot is running, so that the model holds a source.
    """
    if not run.slots.parked:
        raise RuntimeError("a checkpoint in mid-round must be taken through save_interval")
    return {
        "identity": identity(run),
        "periods": [period.state_dict() for period in run.schedule.periods],
        # Of the global parameters, and of the file of each source that belongs to them.
        "round": run.totals["rounds"],
        "last_round": run.totals["last_round"],
        "outer_optimizer": run.outer_optimizer.state_dict(),
        "coding_error": run.reductions.returned_error,
        "moments": None if run.slots.moments is None else run.slots.moments.state_dict(),
        "totals": run.totals,
        # Of a source of this worker without a slot, too: its file may be newer than this.
        "steps": dict.fromkeys(run.held.sources, 0) | run.steps,
    }


def refuse_another(run: Run, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Args:
        run: this run.
        state: the result of :func:`state_of` in the checkpoint.

    Raises:
        ValueError: a setting that both must have in common differs.
    """
    if "periods" not in state:
        raise ValueError(
            "the checkpoint is of an earlier version of this repository, which had no periods of "
            "sources: choose another run_name"
        )
    before = state["identity"]
    source_changes.refuse(run, before)
    now = identity(run)
    is_changed = any(before[key] != now[key] for key in ("sources", "sources_per_round"))
    for key, value in now.items():
        if key == "tokenizers" or (is_changed and key in source_changes.CHANGEABLE):
            continue
        if before.get(key) != value and key == "groups":
            raise ValueError(
                f"the checkpoint's sources were drawn from {before[key]} groups of neighbours, and "
                f"would now be drawn from {value}: set algorithms.dept.sampling to what it "
                f"was, and where that is stratified, start as many workers"
            )
        if before.get(key) != value:
            raise ValueError(
                f"the checkpoint was made with {key} = {before.get(key)}, the yaml says {value}: "
                f"set it to the same, or choose another run_name"
            )
