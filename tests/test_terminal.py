"""Tables that commands print: no cell is cut at 80 columns."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table
from training import REPOSITORY

from dept import terminal
from dept.costs import paper
from dept.evaluation import perplexity, routing
from dept.training import summary

SOURCES = ("wikipedia", "biomedical", "mathematics", "licences", "issues", "python", "manual")


def shown(table, keys=1, width=80):
    file = io.StringIO()
    terminal.show(table, keys, Console(file=file, width=width))
    return file.getvalue()


def summary_table():
    scores = {"loss": 5.062, "perplexity": 12345.6, "bits_per_byte": 2.335, "unigram_ce": 6.034}
    entry = {"vocab_size": 250_112, "tokens": 1_638_400_000, "eval": scores}
    return summary.table(
        {
            "variant": "spec_opt",
            "tokens": 12_000_000_000,
            "rounds": 10,
            "local_steps": 40,
            "timing": {"train_seconds": 199.0},
            "sources": dict.fromkeys(SOURCES, entry),
            "average": scores,
            "held_out": {"editorials": entry},
        }
    )


def matrix_table():
    score = {"bits_per_byte": 12.345}
    matrix = {name: dict.fromkeys(("global", *SOURCES), score) for name in SOURCES}
    return perplexity.matrix_table(
        "multidomain-dept_spec-s17", matrix, SimpleNamespace(sources=SOURCES, held_out=())
    )


def routing_table():
    result = {"accuracy": dict.fromkeys(SOURCES, 0.5), "average": 0.5}
    result["confusion"] = {name: {"mathematics": 10, name: 10} for name in SOURCES}
    lengths = {n: {"unigram": result, "model": result} for n in ("100", "500", "2000")}
    return routing.table(lengths, "routing: runs/multidomain-dept_spec-s17/checkpoints")


@pytest.mark.parametrize("made", (summary_table, matrix_table, routing_table))
def test_every_word_of_a_table_is_whole_in_80_columns(made):
    table = made()
    text = shown(table)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    words = set(re.findall(r"[^\s│┃]+", text))
    for column in table.columns:
        for cell in (str(column.header), *column.cells):
            assert set(re.sub(r"\[/?bold\]", "", cell).split()) <= words


def test_columns_without_room_are_below_with_the_names_of_the_rows():
    table = Table("source", "tokenizer", title="words", caption="of all")
    for number in range(20):
        table.add_column(f"number {number}", justify="right")
    table.add_row("en", "own", *(f"{number:,} MB" for number in range(1000, 1020)))
    text = shown(table, keys=2)
    rows = [line for line in text.splitlines() if "│ en" in line]
    assert len(rows) > 2 and all("│ own" in row for row in rows)
    assert re.findall(r"([\d,]+) MB", text) == [f"{n:,}" for n in range(1000, 1020)]
    assert text.count("words") == text.count("of all") == 1
    assert len(shown(table, width=400).splitlines()) == 7


def test_a_path_wider_than_the_terminal_is_broken_and_not_cut():
    table = Table("experiment", "model")
    table.columns[0].overflow = "fold"
    path = "/".join(["a-long-folder"] * 10)
    table.add_row(path, "1.208B")
    text = shown(table)
    assert max(map(len, text.splitlines())) <= 80 and "1.208B" in text
    assert path in "".join(re.findall(r"^│ (\S+)", text, re.MULTILINE))


def test_the_papers_table_is_whole(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    file = io.StringIO()
    paper.show(Console(file=file, width=80))
    assert "…" not in file.getvalue() and "spec_opt" in file.getvalue()
