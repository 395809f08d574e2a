"""A global embedding by what a file says: which tokens of the sources mean a token of the target.

Such a file comes from aligned translations, as in trans-tokenization (Remy et al. 2024), where
strings have nothing in common:

    {" Haus": {"en": {" house": 0.8, " home": 0.2}, "it": {" casa": 0.5}}}

Tokens are written as :func:`~dept.embeddings.token_strings.strings_of` gives them, MARK left out;
weights of a target token count against each other over all sources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dept.embeddings.merged import Merged, Origin, Parts, SourceEmbedding, check, combine, index
from dept.embeddings.token_strings import MARK

TokenMapping = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target token -> source -> token of the source -> weight."""


def read_mapping(path: str | Path) -> TokenMapping:
    """Read a mapping, and refuse what is none.

    Raises:
        ValueError: the file is missing or is no JSON of the above form; names file, key and mend.
    """
    path = Path(path)
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): correct the path") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): write it again") from None
    _object(mapping, f"{path}")
    for target, sources in mapping.items():
        for source, weights in _object(sources, f"{path}, {target!r}").items():
            for token, weight in _object(weights, f"{path}, {target!r}, {source}").items():
                is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
                if not is_number or not math.isfinite(weight) or weight <= 0:
                    raise ValueError(
                        f"{path}, {target!r}, {source}: {token!r} has weight {weight!r}: give a "
                        "positive number, or leave the token out"
                    )
    return mapping


def from_mapping(
    sources: Mapping[str, SourceEmbedding],
    target: Sequence[str],
    otherwise: Tensor,
    mapping: TokenMapping,
    *,
    rescale: bool = True,
) -> Merged:
    """Make the rows that a mapping speaks of; the others stay those of ``otherwise``.

    Args:
        sources: by name.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d], such as :func:`dept.embeddings.merged.merge` makes.
        mapping: as :func:`read_mapping` gives it.
        rescale: see :mod:`dept.embeddings.merged`.

    Raises:
        ValueError: the mapping names a token or a source that is not there, or sizes differ.
    """
    check(sources, target, otherwise)
    rows = {name: index(source.tokens) for name, source in sources.items()}
    places = index(target)
    recipes: list[tuple[Origin, Parts]] = [(Origin.UNTOUCHED, [])] * len(target)
    for token, by_source in mapping.items():
        place = _find(places, token, "the target")
        parts = []
        for name, weights in by_source.items():
            if name not in rows:
                raise ValueError(
                    f"the mapping of {token!r} names source {name}: take one of {', '.join(rows)}"
                )
            parts += [(name, _find(rows[name], t, f"source {name}"), w) for t, w in weights.items()]
        if parts:
            recipes[place] = Origin.MAPPED, parts
    return combine(sources, recipes, otherwise, rescale)


def _find(rows: Mapping[str, int], token: str, where: str) -> int:
    """The row of a token, special ones and bytes by their name alone."""
    for string in (token, MARK + token):
        if string in rows:
            return rows[string]
    raise ValueError(
        f"the mapping names {token!r}, which is no token of {where}: leave it out, or make the "
        "mapping for this tokenizer"
    )


def _object(value: object, where: str) -> Mapping:
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: {json.dumps(value)[:40]} is no object: write "
            "{target token: {source: {token: weight}}}"
        )
    return value
