"""The options of ``algorithms.dept.federation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dept.config.schema import FLAG, MAPPING, NULL, PATH, TEXT, integer, list_of, number, one_of
from dept.errors import ConfigError

if TYPE_CHECKING:
    from dept.method.local_privacy import LocalPrivacy

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
    its own corpus (``train_loader.sources``). With ``algorithms.dept.allow_source_changes`` these
    are the sources of the first round, and silos may bring others later."""

    silo: str | None = None
    """Name of this silo; ``null`` at the server."""

    socket: str = "runs/{run_name}/silo.sock"
    """Unix socket of a silo, on which its trainer listens for its ClientApp: at most 100
    characters. Only this user can connect to it."""

    metrics: Sequence[str] = field(default_factory=lambda: list(METRICS))
    """Metrics of its sources that a silo reports to the server: some of ``train_loss``,
    ``update_norm``, ``loss`` and ``bits_per_byte`` (of its validation text)."""

    leave: Sequence[str] = ()
    """Sources of this silo that leave the federation, with the next round that is drawn."""

    share_embedding: bool = False
    """Whether this silo sends the private embeddings of its sources, with the strings of their
    tokens, to the server after the last round (SPEC, SPEC-OPT). Others can then start from them."""

    local_privacy: Mapping[str, Any] | None = None
    """Local differential privacy of the sources of this silo: ``{clip_update_norm: C,
    noise_multiplier: z, delta: 1.0e-5}`` clips each update to norm ``C`` and adds noise of standard
    deviation ``z * C`` to each of its numbers, before it is sent. ``null``: none. See
    ``docs/robust.md``."""

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
            "leave": list_of(TEXT),
            "share_embedding": FLAG,
            "local_privacy": MAPPING | NULL,
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

    def noise(self) -> LocalPrivacy | None:
        """The noise that this silo adds to what it sends; ``None`` for none.

        Raises:
            ConfigError: a value is not allowed, or something is sent without noise.
        """
        from dept.method.local_privacy import LocalPrivacy  # torch is slow to import

        private = LocalPrivacy.of(self.local_privacy)
        if private is None:
            return None
        for key, given, fix in (
            ("metrics", self.metrics, "[]"),
            ("share_embedding", self.share_embedding, "false"),
        ):
            if given:
                raise ConfigError(
                    f"{WHERE}.local_privacy is set, and {WHERE}.{key} would send what has no "
                    f"noise: set it to {fix}"
                )
        return private


def check_silo(
    config: Mapping[str, Any],
    federation: FederationOptions,
    names: Sequence[str],
    workers: int,
    *,
    is_open: bool,
) -> None:
    """Check what the yaml of a silo must have.

    Args:
        config: the resolved yaml, as plain containers.
        federation: its ``algorithms.dept.federation``.
        names: the sources that it trains.
        workers: how many workers the job has.
        is_open: whether it may bring sources of its own, and take them out.

    Raises:
        ConfigError: it cannot be a silo.
    """
    if federation.silo is None:
        raise ConfigError(
            f"{WHERE}.silo is null, as at the server: set it to the name of this silo"
        )
    allow = "set algorithms.dept.allow_source_changes to true, here and at the server"
    for name in names:
        if name not in federation.sources and not is_open:
            raise ConfigError(
                f"this silo would train {name}, which {WHERE}.sources does not have: name its "
                f"sources in train_loader.sources; to bring a new one, {allow}"
            )
    for name in federation.leave:
        if name not in names:
            raise ConfigError(
                f"{WHERE}.leave has {name}, which this silo does not train: name some of its "
                f"train_loader.sources, or remove it"
            )
    if federation.leave and not is_open:
        raise ConfigError(f"{WHERE}.leave is set: {allow}")
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
