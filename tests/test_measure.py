"""What the rows of `make bench` share."""

import io
import json

import pytest
from measure import Result, Row, Setting, Spent, alternate, ratios, record, table
from rich.console import Console

from dept import terminal


def row(goal: str, values: list[float]) -> Row:
    return Row("made-up", "a thing", "another", goal, lambda setting: [Result("line", values)])


def test_sides_alternate_and_neither_is_always_first():
    calls: list[str] = []

    def side(name):
        calls.append(name)
        return len(calls)

    mine, theirs = alternate(lambda: side("a"), lambda: side("b"), times=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert mine == [1, 4, 5] and theirs == [2, 3, 6]


def test_ratios_are_of_each_pair_in_both_kinds_of_time():
    wall, cpu = ratios([Spent(1.0, 3.0), Spent(8.0, 5.0)], [Spent(2.0, 1.0), Spent(4.0, 1.0)])
    assert wall.values == [0.5, 2.0] and cpu.values == [3.0, 5.0]
    assert wall.raw == {"dividend_seconds": [1.0, 8.0], "divisor_seconds": [2.0, 4.0]}


@pytest.mark.parametrize(
    ("goal", "values", "reached"),
    [
        (">= 4", [3.9, 4.0, 9.0], True),
        (">= 4", [3.9, 3.9, 9.0], False),
        ("<= 0.5 %", [0.1, 0.5, 0.6], True),
        ("<= 0.5 %", [0.1, 0.51, 0.6], False),
    ],
)
def test_the_median_is_held_against_the_goal(tmp_path, goal, values, reached):
    content = record(row(goal, values), row(goal, values).measure(Setting()), Setting(), tmp_path)
    written = json.loads((tmp_path / "made-up.json").read_text())
    assert written == content
    (line,) = written["results"]
    assert line["is_reached"] is reached and line["values"] == values
    assert [line[key] for key in ("least", "median", "greatest")] == values
    assert {"torch", "tokenizers"} <= written["versions"].keys() and written["machine"]["cores"]


def test_the_table_fits_in_eighty_columns(tmp_path):
    content = record(
        row("<= 0.5 %", [0.25, 1234.0]), [Result("line " * 9, [0.25])], Setting(), tmp_path
    )
    output = io.StringIO()
    terminal.show(table([content]), keys=2, console=Console(file=output, width=80))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "0.25 %" in output.getvalue() and "yes" in output.getvalue()
