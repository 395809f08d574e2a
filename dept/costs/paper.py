"""The paper's table of costs beside the costs of the yamls of this repository.

A number agrees if it equals the paper's when rounded to the digits that the paper prints. Otherwise
it has a note, if the calculation in the note gives the paper's number, and if ours is still the
value in the note. So a note cannot hide a change of the formulas or of a yaml.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dept import terminal
from dept.config import extends
from dept.costs.experiment import Costs, costs_of

YAMLS = Path(__file__).parents[2] / "yamls"
UNITS = {"M": 1e6, "B": 1e9, "": 1.0}

# Yaml; |V_k| x d, parameters of the model, parameters per step, as the paper prints them.
TABLE = """
mc4/125m_std        192M    278M    278M
mc4/125m_glob       192M    278M    0.56M
mc4/125m_trim       166M    252M    0.5M
mc4/125m_spec       166M    252M    0.17M
mc4/125m_spec_opt   38.6M   125M    0.17M
mc4/1b_std          512.2M  1.71B   1.71B
mc4/1b_spec_opt     102.9M  1.3B    2.4M
pile/125m_std       38.6M   125M    125M
pile/125m_glob      38.6M   125M    0.25M
pile/125m_trim      35M     121M    0.24M
pile/125m_spec      35M     121M    0.17M
pile/350m_std       51.4M   350M    350M
pile/350m_glob      51.4M   350M    0.7M
pile/350m_trim      46.6M   345.2M  0.69M
pile/350m_spec      46.6M   345.2M  0.6M
"""
HEADERS = ("|V_k| x d", "model", "per step")

# The paper's "714 times less communication" of 1B SPEC-OPT, and its derivation.
REDUCTION = ("mc4/1b_spec_opt", "714")


@dataclass(frozen=True)
class NominalBody:
    """The size of a body that the paper assumes, and the size of the stated architecture.

    Attributes:
        size: the paper's, in parameters.
        counted: size of the architecture without biases, as our table must print it.
        note: why the two differ.
    """

    size: float
    counted: str
    note: str


BODIES = {
    "125m": NominalBody(
        125e6 - 50_257 * 768,
        "84.95M",
        "The paper takes a nominal 125M for body and 50 257 tokens, hence 86.4M for the body; the "
        "12 blocks of width 768 that it states have 84.95M (85.06M with biases).",
    ),
    "350m": NominalBody(
        350e6 - 50_257 * 1024,
        "302.04M",
        "The paper takes a nominal 350M for body and 50 257 tokens, hence 298.5M for the body; the "
        "24 blocks of width 1024 that it states have 302.04M (302.31M with biases).",
    ),
    "1b": NominalBody(
        1.2e9,
        "1.208B",
        "The paper adds a body rounded to 1.2B; the 24 blocks of width 2048 that it states have "
        "1.208B (1.209B with biases).",
    ),
}
CUT = "The paper cuts digits off: 50 257 tokens of width 1024 are 51.46M, which rounds to 51.5M."
SHARE = (
    "The paper multiplies the 500 local steps by 1 / 0.7; the body's part of the model is 0.702."
)


@dataclass(frozen=True)
class Figure:
    """One number of the table.

    Attributes:
        theirs: the paper's number as printed.
        ours: our number, rounded to the same digits.
        note: why they differ; ``None`` if they are equal, empty if there is no explanation.
    """

    theirs: str
    ours: str
    note: str | None


def to_digits_of(printed: str, value: float, *, cut: bool = False) -> str:
    """A value in the unit and with the decimals of a printed number, rounded or cut off.

    Args:
        printed: a number as the paper prints it, such as ``0.56M``.
        value: the value in units of one.
        cut: whether further decimals are cut off instead of rounded.
    """
    unit = printed[-1] if printed[-1] in UNITS else ""
    digits = printed.removesuffix(unit)
    decimals = len(digits.partition(".")[2])
    value = value / UNITS[unit]
    if cut:
        value = math.floor(value * 10**decimals) / 10**decimals
    return f"{value:.{decimals}f}{unit}"


def compare() -> Iterator[tuple[str, Costs, list[Figure]]]:
    """For each row of the table: its yaml, our costs with the paper's vocabularies, the numbers."""
    for line in TABLE.split("\n")[1:-1]:
        name, *printed = line.split()
        costs = _costs(name)
        body = BODIES[name.split("/")[1].split("_")[0]]
        values = _figures(costs, costs.parameters.body)
        nominal = _figures(costs, body.size)
        counted = to_digits_of(body.counted, costs.parameters.body) == body.counted
        found = []
        for theirs, value, with_theirs in zip(printed, values, nominal, strict=True):
            note: str | None = ""
            if to_digits_of(theirs, value) == theirs:
                note = None
            elif counted and to_digits_of(theirs, with_theirs) == theirs:
                note = body.note
            elif value == 50_257 * 1024 and to_digits_of(theirs, value, cut=True) == theirs:
                note = CUT
            found.append(Figure(theirs, to_digits_of(theirs, value), note))
        yield name, costs, found


def compare_reduction() -> Figure:
    """The paper's factor of communication between STD and SPEC-OPT."""
    name, theirs = REDUCTION
    costs = _costs(name)
    ours = to_digits_of(theirs, costs.reduction)
    share = costs.local_steps / costs.reduction
    accounted = f"{share:.3f}" == "0.702"
    accounted = accounted and to_digits_of(theirs, costs.local_steps / round(share, 1)) == theirs
    return Figure(theirs, ours, None if ours == theirs else SHARE if accounted else "")


def show(console: Console | None = None) -> int:
    """Print the table and the notes; returns 1 if a number differs without a note, else 0."""
    table = Table(title="Parameters: the paper's, and ours rounded to the digits that it prints")
    for header in ("yaml", "mean |V_k|", *(h for name in HEADERS for h in (name, "ours"))):
        table.add_column(header, justify="left" if header == "yaml" else "right")
    reduction = compare_reduction()
    notes: list[str] = []
    before, rows, unaccounted = "", list(compare()), 0
    for name, costs, found in rows:
        if before and before != name.split("_")[0]:
            table.add_section()
        before = name.split("_")[0]
        cells = []
        for figure in found:
            unaccounted += figure.note == ""
            cells += [figure.theirs, _cell(figure, notes)]
        table.add_row(name, f"{costs.vocabulary.held:,.0f}", *cells)
    terminal.show(table, console=console)
    terminal.say("Vocabularies are the paper's, from the yamls.", console=console)
    unaccounted += reduction.note == ""
    terminal.say(
        f"1B SPEC-OPT communicates {_cell(reduction, notes)} times less than STD, "
        f"{reduction.theirs} in the paper.",
        console=console,
    )
    for index, note in enumerate(notes, 1):
        terminal.say(f"({index}) {note}", console=console)
    if unaccounted:
        terminal.say(
            f"{unaccounted} numbers (?) differ from the paper's without a note.", console=console
        )
    return 1 if unaccounted else 0


def _costs(name: str) -> Costs:
    return costs_of(extends.resolve(extends.load(YAMLS / f"{name}.yaml")), measured=False)


def _figures(costs: Costs, body: float) -> tuple[float, float, float]:
    """The three numbers of a row of the table, for a body of the given size."""
    difference = body - costs.parameters.body
    return (
        costs.embedding,
        costs.total + difference,
        (costs.communicated + difference) / costs.local_steps,
    )


def _cell(figure: Figure, notes: list[str]) -> str:
    if figure.note is None:
        return figure.ours
    if figure.note == "":
        return f"{figure.ours} (?)"
    if figure.note not in notes:
        notes.append(figure.note)
    return f"{figure.ours} ({notes.index(figure.note) + 1})"
