"""The options of ``algorithms.dept.federation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dept.config.schema import NULL, PATH, TEXT, integer, list_of, number, one_of
from dept.errors import ConfigError

METRICS = ("train_loss", "update_norm", "loss", "bits_per_byte")
"""Metrics of a source that a silo may report: of training, and of its validation text."""

WHERE = "algorithms.dept.federation"


@dataclass(frozen=True)
class FederationOptions:
    """``algorithms.dept.federation``: organisations train one body, and their text stays with them.

    The server and each silo read the same yaml; ``docs/federation.md`` has the steps.
    """

    sources: Sequence[str]
    """All sources of the federation, in the order in which they are drawn. A silo trains those of
    its own corpus (``train_loader.sources``)."""

    silo: str | None = None
    """Name of this silo; ``null`` at the server."""

    socket: str = "runs/{run_name}/silo.sock"
    """Unix socket of a silo, on which its trainer listens for its ClientApp: at most 100
    characters. Only this user can connect to it."""

    metrics: Sequence[str] = field(default_factory=lambda: list(METRICS))
    """Metrics of its sources that a silo reports to the server: some of ``train_loss``,
    ``update_norm``, ``loss`` and ``bits_per_byte`` (of its validation text)."""

    min_sources: int = 1
    """The fewest sources that make a round. With fewer updates the server waits, and says so."""

    round_timeout: float = 3600.0
    """Seconds that a round waits for silos that are connected."""

    grace: float = 60.0
    """Seconds that a round waits for a silo after Flower reports it as disconnected."""

    def __post_init__(self) -> None:
        seconds = number(0, above=True)
        checks = {
            "sources": list_of(TEXT),
            "silo": TEXT | NULL,
            "socket": PATH,
            "metrics": list_of(one_of(*METRICS)),
            "min_sources": integer(1),
            "round_timeout": seconds,
            "grace": number(0),
        }
        for name, kind in checks.items():
            kind.check(f"{WHERE}.{name}", getattr(self, name))
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ConfigError(f"{WHERE}.sources names no source, or one twice: name each once")
        for name in (*self.sources, self.silo or "x"):
            if not all(c.isalnum() or c in "-_." for c in name):
                raise ConfigError(
                    f"{WHERE} names {name!r}: use letters, digits, '-', '_' and '.' alone"
                )
        if self.min_sources > len(self.sources):
            raise ConfigError(
                f"{WHERE}.min_sources is {self.min_sources}, and there are {len(self.sources)} "
                f"sources: set it to {len(self.sources)} or less"
            )


def check_silo(
    config: Mapping[str, Any], federation: FederationOptions, names: Sequence[str], workers: int
) -> None:
    """Check what the yaml of a silo must have.

    Args:
        config: the resolved yaml, as plain containers.
        federation: its ``algorithms.dept.federation``.
        names: the sources that it trains.
        workers: how many workers the job has.

    Raises:
        ConfigError: it cannot be a silo.
    """
    if federation.silo is None:
        raise ConfigError(
            f"{WHERE}.silo is null, as at the server: set it to the name of this silo"
        )
    for name in names:
        if name not in federation.sources:
            raise ConfigError(
                f"this silo would train {name}, which {WHERE}.sources does not have: name its "
                f"sources in train_loader.sources"
            )
    if workers > 1:
        raise ConfigError(
            f"a silo is one worker, and this job has {workers}: set algorithms.dept."
            f"ranks_per_worker to the number of its processes, or start train.py without a launcher"
        )
    if not config.get("save_folder") or config.get("save_interval", "1ep") != "1ep":
        raise ConfigError(
            "a silo returns to its last round after a loss of its update: set save_folder, and "
            "save_interval to 1ep"
        )
    if "://" in str(config["save_folder"]):
        raise ConfigError("save_folder of a silo is its own disk: set it to a folder")
    if "start_from" in (config.get("callbacks") or {}):
        raise ConfigError("callbacks.start_from is not for a federation: remove it")
