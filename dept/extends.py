"""Yamls that build on one another: `extends`, overrides on the command line, interpolations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dept.options import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a yaml, merge it over those it ``extends``, then the ``key=value`` overrides over it.

    ``extends`` is a file, or a list of them of which later ones go over earlier ones, relative to
    the yaml that names it.

    Raises:
        ConfigError: a file is missing or extends itself, or an override is not ``key=value``.
    """
    config = _load_file(Path(path), ())
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r} is not an override: write key=value")
    merged = OmegaConf.merge(config, OmegaConf.from_cli(list(overrides)))
    assert isinstance(merged, DictConfig)
    return merged


def resolve(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, interpolations replaced by what they stand for.

    Raises:
        ConfigError: a value is missing, or stands for one that is not there.
    """
    try:
        missing = sorted(
            OmegaConf.missing_keys(config),
            key=lambda k: (not k.startswith("variables"), k.count("."), k),
        )
        if missing:  # what refers to a variable is missing too
            raise ConfigError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}: correct the yaml") from None
    assert isinstance(plain, dict)
    return plain


def _load_file(path: Path, extended_by: tuple[Path, ...]) -> DictConfig:
    path = path.resolve()
    if path in extended_by:
        chain = " -> ".join(p.name for p in (*extended_by, path))
        raise ConfigError(f"{chain} extend each other in a circle: remove one `extends`")
    if not path.is_file():
        by = f", which {extended_by[-1].name} extends," if extended_by else ""
        raise ConfigError(f"{path}{by} does not exist: name a yaml file")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is not a mapping of keys: write an llm-foundry yaml")
    bases = config.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    merged = OmegaConf.merge(
        *[_load_file(path.parent / base, (*extended_by, path)) for base in bases], config
    )
    assert isinstance(merged, DictConfig)
    return merged
