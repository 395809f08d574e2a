"""What a source sends in a round under each compression, for the same experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from dept.costs.experiment import Costs, costs_of
from dept.errors import ConfigError


def costs_by_codec(config: Mapping[str, Any], *, measured: bool = True) -> dict[str, Costs]:
    """The costs of an experiment with each codec at its defaults, and with none.

    Args:
        config: a resolved yaml of DEPT, as plain containers.
        measured: take sizes of vocabularies from the corpus if it is prepared here.

    Raises:
        ConfigError: the yaml is of a baseline, or has a wrong value.
    """
    from dept.method.codecs import CODECS  # torch is slow to import

    algorithms = config.get("algorithms") or {}
    if "dept" not in algorithms:
        raise ConfigError("it has no algorithms.dept, so nothing is coded: name a yaml of DEPT")
    return {
        name: costs_of(
            {
                **config,
                "algorithms": {**algorithms, "dept": {**dept, "compression": {"name": name}}},
            },
            measured=measured,
        )
        for dept in [algorithms["dept"]]
        for name in ("none", *CODECS)
    }


def table(every: Mapping[str, Mapping[str, Costs]], number: Any) -> Table:
    """Bytes of an exchange, and how many times fewer than STD's gradients in the same steps.

    Args:
        every: costs by codec, by experiment.
        number: writes a number of bytes.
    """
    codecs: Sequence[str] = list(next(iter(every.values())))
    made = Table(title="Bytes that a source sends in a round, and how many times fewer than STD")
    made.add_column("experiment", overflow="fold")
    for name in codecs:
        made.add_column(name, justify="right")
    for path, costs in every.items():
        cells = (
            f"{number(costs[name].message, 'B')}\n{costs[name].byte_reduction:,.0f}"
            for name in codecs
        )
        made.add_row(path.removeprefix("yamls/").removesuffix(".yaml"), *cells)
    return made
