"""Yamls that build on one another: `extends`, overrides on the command line, interpolations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dept.errors import ConfigError

_YAML_ERRORS = (OmegaConfBaseException, YAMLError, ValueError, AssertionError)


def load(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a yaml, merge it over those it ``extends``, then apply the ``key=value`` overrides.

    ``extends`` is a file or a list of files, relative to the yaml that names it. Later files
    override earlier ones.

    Args:
        path: path of the yaml.
        overrides: ``key=value`` each.

    Raises:
        ConfigError: a file is missing or extends itself, or an override is not ``key=value``.
    """
    config = OmegaConf.create()
    for file, layer in layers(path):
        try:
            config = _merged(config, layer)
        except (*_YAML_ERRORS, TypeError) as error:
            raise ConfigError(
                f"{file} cannot be merged with what it extends: {_line_of(error)}"
            ) from None
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r} is not an override: write key=value")
    try:
        return _over(config, overrides)
    except (*_YAML_ERRORS, TypeError, IndexError, KeyError):
        pass
    for override in overrides:  # one by one, so that the error can name it
        try:
            config = _over(config, [override])
        except (*_YAML_ERRORS, TypeError, IndexError, KeyError) as error:
            raise ConfigError(
                f"{override!r} cannot be read: {_line_of(error)}; quote what is not meant as yaml"
            ) from None
    return config


def layers(path: str | Path) -> list[tuple[Path, DictConfig]]:
    """A yaml and all that it extends, each without ``extends``; later ones override earlier ones.

    Raises:
        ConfigError: a file is missing or extends itself.
    """
    return _layers(Path(path), ())


def _over(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    return _merged(config, OmegaConf.from_cli(list(overrides)))


def _merged(below: DictConfig, above: DictConfig | ListConfig) -> DictConfig:
    merged = OmegaConf.merge(below, above)
    if not isinstance(merged, DictConfig):
        raise ValueError("it does not name a key: write key=value")
    return merged


def resolve(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, with interpolations resolved.

    Raises:
        ConfigError: a value is missing, or refers to one that does not exist.
    """
    try:
        missing = sorted(
            OmegaConf.missing_keys(config),
            key=lambda k: (not k.startswith("variables"), k.count("."), k),
        )
        if missing:  # values that refer to a missing one are missing too
            raise ConfigError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
        plain = OmegaConf.to_container(config, resolve=True)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError("a value refers to itself in a circle: correct the yaml") from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"{_line_of(error)}: correct the yaml") from None
    assert isinstance(plain, dict)
    return plain


def _layers(path: Path, extended_by: tuple[Path, ...]) -> list[tuple[Path, DictConfig]]:
    path = path.resolve()
    if path in extended_by:
        chain = " -> ".join(p.name for p in (*extended_by, path))
        raise ConfigError(f"{chain} extend each other in a circle: remove one `extends`")
    if not path.is_file():
        by = f", which {extended_by[-1].name} extends," if extended_by else ""
        raise ConfigError(f"{path}{by} does not exist: name a yaml file")
    try:
        config = OmegaConf.load(path)
    except (*_YAML_ERRORS, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {_line_of(error)}; correct it") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is not a mapping of keys: write an llm-foundry yaml")
    bases = config.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, (list, ListConfig)) or not all(isinstance(b, str) for b in bases):
        raise ConfigError(f"{path}: extends is {bases!r}: name a yaml, or a list of them")
    below = [_layers(path.parent / base, (*extended_by, path)) for base in bases]
    return [*(layer for of_base in below for layer in of_base), (path, config)]


def _line_of(error: Exception) -> str:
    """The message of a library's error, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\w+ raised while resolving interpolation: | object_type=\w+$", "", text)
    return text if len(text) <= 200 else f"{text[:200]} ..."
