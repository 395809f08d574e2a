"""How all workers come to stand where a checkpoint was taken, which the first of them loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from composer.core import State, Timestamp

from dept.checkpoint.source_files import FOLDER, SourceFiles
from dept.errors import ConfigError
from dept.training import moves

if TYPE_CHECKING:
    from dept.training.algorithm import Dept


def agree(dept: Dept, state: State) -> None:
    """Let every worker have the global model, the clock and its sources as the checkpoint has them.

    Args:
        dept: of this worker; the first one's has loaded the checkpoint, if there is any.
        state: of Composer.

    Raises:
        ConfigError: the state of a source is missing, or is of another tokenizer.
        WorkerLost: a worker did not come.
    """
    workers, slots = dept.workers, dept.slots
    here = {"round": state.timestamp.epoch.value, "from": state.load_path, "loaded": dept.loaded}
    first = workers.value_of_first(here, stage="the start")
    dept.loaded = None
    start = [slots.start[name] for name in sorted(slots.start)]
    workers.from_first(start, kind="start", stage="the start")
    moves.settle(dept, first["round"])
    if first["loaded"] is None:
        return
    loaded, round_index = first["loaded"], first["round"]
    dept.outer_optimizer.load_state_dict(loaded["outer_optimizer"], device=state.device._device)
    dept.totals |= loaded["totals"]
    dept.totals["wait_seconds"] = [0.0] * workers.count
    files = SourceFiles(Path(first["from"]).parent / FOLDER)
    if "://" in first["from"] and dept.files is not None:
        files = dept.files
    for source in dept.held:
        _restore(dept, source, files, round_index, loaded["steps"].get(source))
    done = {source: len(slot["losses"]) for source, slot in dept.round.items()}
    dept.loader.start(round_index, done)
    state.timestamp = _timestamp(dept, state, round_index, sum(done.values()))
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        # The optimizer's own state is not in the checkpoint, so neither is the learning rate.
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)


def _restore(
    dept: Dept, source: str, files: SourceFiles, round_index: int, step: int | None
) -> None:
    """Take what there is of a source from its file, for a checkpoint in ``round_index``."""
    trained = dept.totals["last_round"].get(source, 0)
    found = files.read(source, round_index, step)
    if found is None and trained == 0:
        return
    where = files.folder / source
    if (found is None or found["last_round"] != trained) and dept.fetch_source is not None:
        dept.fetch_source(source, round_index)  # on another machine than the first worker
        found = files.read(source, round_index, step)
    if found is None or found["last_round"] != trained:
        kept = "" if dept.options.upload_sources else ", from the machine that trained it"
        raise ConfigError(
            f"{where} lacks the state of {source} that the checkpoint of round {round_index} "
            f"belongs to: bring the folder to where the checkpoint is{kept}"
        )
    if found["tokenizer"] != dept.loader.prepared[source].tokenizer_hash:
        raise ConfigError(
            f"{where} is of another tokenizer than the shards of {source}: prepare the corpus as "
            f"it was, or choose another run_name"
        )
    dept.slots.load_state_of(source, found["slots"])
    dept.loader.positions[source] = found["position"]
    if dept.files is not None and files.folder.resolve() == dept.files.folder.resolve():
        slot = found["slot"]
        dept.in_file[source] = (found["round"], len(slot["losses"]) if slot else 0)
    else:  # a checkpoint of this run must find it in this run's folder
        dept.changed.add(source)
    if found["round"] != round_index or found["slot"] is None:
        return
    dept.round[source] = found["slot"]
    if found["local_model"] is not None:
        if source in dept.changed and dept.keep_local_models:
            dept.local_models[source] = found["local_model"]
        start = dept.slots.start
        local = {name: value.to(start[name].device) for name, value in found["local_model"].items()}
        dept.reduction.add(local, dept.share(source))


def _timestamp(dept: Dept, state: State, round_index: int, batch_in_round: int) -> Timestamp:
    """Composer's clock of this worker, which may have had no part in the checkpoint."""
    batch = round_index * dept.schedule.batches_per_round + batch_in_round
    samples = dept.loader.batch_size * dept.workers.place.ranks
    tokens = samples * next(iter(dept.loader.prepared.values())).sequence_length
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
