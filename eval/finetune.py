"""Fine-tune a trained body on a task, from a yaml:

    composer eval/finetune.py eval/yamls/finetune/sst2.yaml \\
        checkpoint=runs/<run_name>/checkpoints [source=global] [key=value ...]

Sequences, head and losses are those of Radford et al. 2018; Composer trains. `val` chooses the
epoch whose `test` is reported. The keys, with their defaults, are in eval/finetuning/options.py.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

# As train.py, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from omegaconf import OmegaConf
from rich.table import Table

from dept import terminal
from dept.checkpoint import durable, run_folder, trust
from dept.config import extends
from dept.errors import NotSaved
from dept.evaluation.finetuning.examples import read_splits, read_transfer
from dept.evaluation.finetuning.options import FineTuneOptions, read_options
from dept.log import log
from dept.training.summary import read_summary
from dept.transport.launcher import end_with_launcher

# What may differ when a run is resumed.
_NOT_SHAPING = ("folder", "root", "save_interval", "device_train_microbatch_size")


def main(arguments: list[str]) -> int:
    """Fine-tune; returns the exit status."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        return 0 if arguments else 2
    end_with_launcher()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        options = read_options(extends.resolve(extends.load(arguments[0], arguments[1:])))
        name = run_name(options)
        folder = Path(options.folder.format(run_name=name))
        summary = look_into(folder, options)
        if summary is None:
            with run_folder.hold(folder) if is_first else nullcontext():
                summary = run(options, name, folder, is_first)
        elif is_first:
            log.info(f"{folder} is finished; another run_name trains again")
    except ValueError as error:
        if is_first:
            log.error(f"{arguments[0]}: {error}")
        return 2
    except NotSaved as error:
        log.error(f"{arguments[0]}: {error}")
        return 1
    if is_first:
        show(summary, folder)
    return 0


def run_name(options: FineTuneOptions) -> str:
    """The name of the run, from that of the checkpoint's run if it is not given."""
    if options.run_name:
        return options.run_name
    path = Path(options.checkpoint)
    folder = path.parent if path.suffix == ".pt" else path
    body = folder.parent.name if folder.name == "checkpoints" else folder.name
    init = "random" if options.init == "random" else None
    parts = (body, options.source, init, options.task.name, f"s{options.seed}")
    return "-".join(part for part in parts if part)


def look_into(folder: Path, options: FineTuneOptions) -> dict[str, Any] | None:
    """Check the files of an earlier job; returns the summary if the run is finished.

    Args:
        folder: folder of the run.
        options: settings of this job.

    Raises:
        ConfigError: the settings of the run were others, or the starting checkpoint is missing.
    """
    given = asdict(options)
    shaping = tuple(key for key in given if key not in _NOT_SHAPING)
    run_folder.refuse_other_settings(given, folder / "config.yaml", shaping)
    path = Path(options.checkpoint)
    is_on_hub = not path.exists() and options.checkpoint.count("/") <= 1
    if not is_on_hub and not (path / "config.json").is_file():
        run_folder.find_checkpoint(path)  # before the slow imports
    return read_summary(folder / "summary.json")


def run(options: FineTuneOptions, name: str, folder: Path, is_first: bool) -> dict[str, Any]:
    """Read the data and train; writes ``config.yaml`` and ``summary.json``.

    Args:
        options: settings of the job.
        name: name of the run.
        folder: folder of the run, which receives the files.
        is_first: whether this process is the first one. Only the first process recovers checkpoints
            and writes the files.

    Returns:
        The summary of the run.
    """
    trust.guard()
    splits = read_splits(options.data, options.task)
    transfer = read_transfer(options.data, options.task)
    for torn in run_folder.recover(folder / "checkpoints") if is_first else ():
        log.warning(f"{torn} was cut short by a kill and is not used")
    newest = folder / "checkpoints" / "latest-rank0.pt"
    if newest.is_file():
        trust.refuse_code(newest.resolve())
    warnings.filterwarnings("ignore")  # what the pinned libraries say of each other
    from dept.evaluation.finetuning.training import fine_tune

    if is_first:
        durable.write(folder / "config.yaml", OmegaConf.to_yaml(asdict(options)))
    summary = fine_tune(options, splits, transfer, name, folder)
    if is_first:
        durable.write(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def show(summary: dict[str, Any], folder: Path) -> None:
    """Print the results beside the baselines.

    Args:
        summary: content of ``summary.json``.
        folder: folder of the run, which is printed too.
    """
    counts = ", ".join(f"{count:,} {name}" for name, count in summary["examples"].items())
    table = Table(title=f"{summary['task']}: {counts}")
    table.add_column("test")
    for metric in summary["test"]:
        table.add_column(metric, justify="right")
    for name, value in summary["baselines"].items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    table.add_section()
    body = "random initialisation" if summary["init"] == "random" else summary["source"]
    table.add_row(f"fine-tuned, {body}", *(f"{value:.3f}" for value in summary["test"].values()))
    for source, scores in summary["transfer"].items():
        table.add_row(f"in {source}", *(f"{value:.3f}" for value in scores.values()))
    terminal.show(table)
    best = summary["best"]
    chosen = f"{summary['metric']} on val is highest ({best['val'][summary['metric']]:.3f})"
    terminal.say(f"Of epoch {best['epoch']}, whose {chosen}.")
    terminal.say(f"{folder}: summary.json, metrics.jsonl, config.yaml, checkpoints", style="dim")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
