"""The summary of a finished run: `summary.json`, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from dept import terminal
from dept.training.passes import line

COLUMNS = {
    "unigram_ce": "unigram CE",
    "loss": "loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a finished run; ``None`` if it has not finished."""
    return json.loads(path.read_text()) if path.is_file() else None


def table(summary: Mapping[str, Any]) -> Table:
    """The evaluation of each source, held-out ones below, as a table."""
    rows = Table(
        title=f"{summary['variant']}: {summary['tokens']:,} tokens, {summary['rounds']} rounds of "
        f"{summary['local_steps']} local steps, {summary['timing']['train_seconds']:.0f} s",
        caption="loss and unigram cross-entropy in nats per token of the source's tokenizer",
    )
    rows.add_column("source")
    for header in ("vocabulary", "tokens", *COLUMNS.values()):
        rows.add_column(header, justify="right")

    def add(name: str, entry: Mapping[str, Any], evaluation: Mapping[str, float]) -> None:
        known = [f"{entry[key]:,}" if key in entry else "" for key in ("vocab_size", "tokens")]
        metrics = [f"{evaluation[key]:.{1 if key == 'perplexity' else 3}f}" for key in COLUMNS]
        rows.add_row(name, *known, *metrics)

    for name, entry in summary["sources"].items():
        add(name, entry, entry["eval"])
    if summary["average"]:  # None if nothing was evaluated
        rows.add_section()
        add("average", {}, summary["average"])
    if summary["held_out"]:
        rows.add_section()
        for name, entry in summary["held_out"].items():
            add(f"{name} (held out)", entry, entry["eval"])
    return rows


def show(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the table and where the files are.

    Args:
        summary: the contents of ``summary.json``.
        folder: folder of the run.
    """
    terminal.show(table(summary))
    sent = summary["communication"]
    if sent["reduction"]:
        terminal.say(
            f"A source communicates {sent['parameters_per_step']:,.0f} parameters per step, "
            f"in {sent['byte_reduction']:,.0f} times fewer bytes than exchanging every gradient."
        )
    if sent["sent_bytes"] and sent["every_step_bytes"]:  # neither one process nor a silo
        terminal.say(
            f"{summary['workers']} workers sent {sent['sent_bytes_per_round'] / 1e6:,.1f} MB a "
            f"round, {sent['every_step_bytes'] / sent['sent_bytes']:.0f} times less than that."
        )
    if private := summary.get("privacy"):
        terminal.say(
            f"Each source: differential privacy of the global model, epsilon "
            f"{private['epsilon']:.3g} at delta {private['delta']:.0e}, if the seed is secret."
        )
    if local := summary.get("local_privacy"):
        each = ", ".join(f"{name} {of['epsilon']:.3g}" for name, of in local["sources"].items())
        terminal.say(
            f"Local differential privacy of all updates that were sent, epsilon at delta "
            f"{local['delta']:.0e}: {each}."
        )
    if said := line(summary["sources"]):
        terminal.say(said)
    terminal.say(f"{folder}: summary.json, metrics.jsonl, config.yaml, checkpoints", style="dim")
