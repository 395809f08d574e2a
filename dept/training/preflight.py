"""`train.py --check`: check in seconds whether a run can start; nothing is trained or changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dept import terminal
from dept.checkpoint import durable, run_folder
from dept.config import complete as configs
from dept.config import extends
from dept.config.corpus_checks import corpus_and_sources
from dept.config.dept_checks import note_on_chances, schedule_of
from dept.config.options import CorpusOptions, DeptOptions, options_of
from dept.costs import machine
from dept.data.corpus import GLOBAL, PreparedSource
from dept.errors import DataError
from dept.method.schedule import RoundSchedule
from dept.method.variants import Vocabulary
from dept.training.on_machine import choose
from dept.training.summary import read_summary
from dept.transport.topology import Place


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: name of the check.
        said: description of what was found, or of what is wrong.
        fine: whether training can start; ``None`` if this is unknown.
    """

    subject: str
    said: str
    fine: bool | None = True


def main(path: str, overrides: Sequence[str], workers: int | None = None) -> int:
    """Print all findings; returns the exit status, 0 if training can start and 2 if not.

    Args:
        path: path of the yaml.
        overrides: ``key=value`` each.
        workers: number of workers; by default that of ``WORLD_SIZE``, which a launcher sets, or 1.
    """
    try:
        config = extends.resolve(extends.load(path, overrides))
        dept, _ = options_of(config)
        if workers is not None:
            ranks = dept.ranks_per_worker if dept is not None else 1
            os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(workers * ranks)
        findings = list(look(config))
    except ValueError as error:
        findings = [Finding("yaml", str(error), False)]
    table = Table(title=path)
    table.add_column("")
    table.add_column("found", overflow="fold")
    table.add_column("")
    marks = {True: "ok", False: "[red]no[/red]", None: "?"}
    for finding in findings:
        said = finding.said.replace("[", "\\[")
        table.add_row(finding.subject, said, marks[finding.fine])
    terminal.show(table, keys=3)
    wrong = [finding.subject for finding in findings if finding.fine is False]
    verdict = f"cannot start: see {', '.join(wrong)}" if wrong else "can start"
    terminal.say(f"{path}: {verdict}", style="bold")
    return 2 if wrong else 0


def look(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Check everything that training depends on, also after a failed check.

    Args:
        config: a resolved yaml, as plain containers.
    """
    try:
        configs.check(config)
        trouble: ValueError | None = None
    except ValueError as error:
        trouble = error
    if trouble is not None and not isinstance(trouble, DataError):
        yield Finding("yaml", str(trouble), False)
        return  # nothing else can be checked
    dept, loader = options_of(config)
    if loader is None:
        yield Finding(
            "yaml", "of llm-foundry, not on a prepared corpus: only its keys were checked"
        )
        return
    yield Finding("yaml", _experiment(config, dept))
    if trouble is not None:
        yield Finding("data", str(trouble), False)
        names: tuple[str, ...] = ()
    else:
        corpus, names = corpus_and_sources(loader, dept)
        own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
        sources = [corpus.source(name, name if own else GLOBAL) for name in names]
        yield Finding("data", _data(sources, loader))
        used = names if own else (GLOBAL,)
        which = f"{len(used)} tokenizers" if own else f"{corpus.tokenizers[GLOBAL].path}"
        yield Finding("tokenizer", f"{which}, those that the shards were written with")
    place = Place.of(os.environ, dept.ranks_per_worker if dept is not None else 1)
    slots, of_worker = 1, 0
    if dept is not None and names:
        schedule = schedule_of(config, dept, names, place.workers)
        rounds = str(config["max_duration"]).removesuffix("ep")
        slots = schedule.slots_per_worker
        of_worker = schedule.most_held(int(rounds) if rounds.isdigit() else 1)
        yield Finding("workers", _workers(dept, schedule, place))
    elif dept is None:
        yield Finding("workers", f"{place.world} processes, each with a part of the batch")
    config = deepcopy(dict(config))
    yield _attempt("machine", lambda: _machine(config))
    yield _memory(config, slots, of_worker, place)
    if trouble is None:
        yield _attempt("run folder", lambda: _folder(config))


def _attempt(subject: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, describe())
    except (ValueError, OSError) as error:
        return Finding(subject, str(error), False)


def _machine(config: dict[str, Any]) -> str:
    """Choose what the yaml leaves to the machine, and check that it can run here."""
    _, line = choose(config)
    machine.check(config)
    return line


def _experiment(config: Mapping[str, Any], dept: DeptOptions | None) -> str:
    method = (config.get("variables") or {}).get("method", "std") if dept is None else dept.variant
    text = f"{method}, {config['max_duration']}, batch {config['global_train_batch_size']} x "
    text += f"{config['max_seq_len']} tokens"
    return text if dept is None else f"{text}, {dept.local_steps} local steps in a slot"


def _data(sources: Sequence[PreparedSource], loader: CorpusOptions) -> str:
    """Sizes of the training splits and of all shards; local shards are checked to be whole."""
    shards = [s for source in sources for index in source.indexes.values() for s in index.shards]
    tokens = sum(source.splits["train"].tokens for source in sources)
    size = sum(shard.bytes for shard in shards)
    absent = sum(not shard.path.is_file() for shard in shards)
    text = f"{len(sources)} sources, {tokens:,} tokens to train on, {len(shards) - absent} shards, "
    text += f"{size / 1e6:,.1f} MB"
    return text + (f"; {absent} more are fetched from {loader.remote}" if absent else "")


def _workers(dept: DeptOptions, schedule: RoundSchedule, place: Place) -> str:
    of_round = schedule.sources_per_round
    would_do = [n for n in range(1, of_round + 1) if of_round % n == 0]
    ranks = f" of {dept.ranks_per_worker} processes" if dept.ranks_per_worker > 1 else ""
    return (
        f"{place.workers}{ranks}, {schedule.slots_per_worker} of {of_round} sources a round each; "
        f"{', '.join(map(str, would_do))} would do"
        + ("; all must see checkpoints/sources of the run" if schedule.moves else "")
        + "".join(f"; {note}" for note in note_on_chances(schedule))
    )


def _memory(config: Mapping[str, Any], slots: int, sources: int, place: Place) -> Finding:
    try:
        found = machine.estimate(
            config, slots=slots, sources=sources, workers_here=place.local_world // place.ranks or 1
        )
    except ValueError as error:
        return Finding("memory", f"not estimated: {error}", None)
    parts = {
        "training": found.training,
        "DEPT": found.dept,
        "sources on the CPU": found.kept,
        "activations": found.activations,
        "libraries": machine.LIBRARIES if found.device == "memory" else 0,
    }
    terms = " + ".join(f"{size / 1e9:.2f} {name}" for name, size in parts.items() if size)
    return Finding(
        "memory",
        f"about {found.needed / 1e9:.2f} GB a worker ({terms}) of {found.available / 1e9:.2f} GB "
        f"of {found.device}; activations are a rough estimate",
        found.fits,
    )


def _folder(config: Mapping[str, Any]) -> str:
    """Describe what an earlier job left in the folder of the run.

    Raises:
        ConfigError: the settings of the run were others, or another job uses the folder.
    """
    folder = run_folder.folder_of(config)
    if config.get("save_folder") is None:
        return "nothing is saved"
    if (folder / ".lock").is_file():
        run_folder.hold(folder, wait=0.0).lock.release()
    if not config.get("autoresume") or "://" in str(config["save_folder"]):
        return f"{folder}; Composer will find whether there are checkpoints"
    run_folder.refuse_other_settings(
        configs.complete(deepcopy(dict(config))), folder / "config.yaml"
    )
    summary = read_summary(folder / "summary.json")
    if summary and f"{summary['rounds']}ep" == str(config["max_duration"]):
        return f"{folder} is finished: the same command shows its table"
    torn = 0
    for round_index, batch, path in reversed(
        run_folder.numbered_checkpoints(config["save_folder"])
    ):
        if durable.is_whole(path):
            left = f", past {torn} that is cut short" if torn else ""
            return f"{folder} resumes from round {round_index}, batch {batch}{left}"
        torn += 1
    return f"{folder} is new" if not torn else f"{folder} starts again, {torn} checkpoints are torn"
