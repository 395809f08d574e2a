"""One embedding for all sources, merged from their private ones, to continue training SPEC from.

This goes beyond the paper, which starts continued pre-training from a random embedding, since SPEC
has no global one. Every row here is a weighted mean of rows of the sources,

    row_v = c_v * sum_kr w_kr x_kr,   sum_kr w_kr = 1,   c_v = sum w_kr |x_kr| / |sum w_kr x_kr|,

where c_v gives it the average length of its parts: a plain mean of n unrelated vectors is sqrt(n)
times shorter. The spaces of sources are not rotated onto each other first: the body was trained
with them unrotated, and rotation made results worse where it was tried. An untied head is merged
like the input embedding, by a second call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dept.embeddings.token_strings import is_text, speller

Parts = list[tuple[str, int, float]]
"""The parts of a row: source, its row, weight."""

WEIGHTINGS = ("counts", "uniform")


class Origin(str, Enum):
    """The origin of a row."""

    SHARED = "shared"  # the same token of the sources that were trained on it
    SPARSE = "sparse"  # shared tokens whose rows add up to its row: combinations.sparse
    PIECES = "pieces"  # the tokens that spell it
    UNSEEN = "unseen"  # the same token of sources that have it but were never trained on it
    UNTOUCHED = "untouched"  # nothing


@dataclass(frozen=True)
class SourceEmbedding:
    """A token matrix of one source.

    Attributes:
        tokens: string of each row, all different; see ``token_strings.strings_of``.
        vectors: float[rows, d], on the CPU.
        counts: [rows], occurrences in the tokens that the source was trained on, not in its text:
            sources of different sizes that were trained on equally many tokens have equal weights.
    """

    tokens: tuple[str, ...]
    vectors: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Merged:
    """A global embedding.

    Attributes:
        vectors: float32[len(target), d].
        origins: origin of each row.
    """

    vectors: Tensor
    origins: tuple[Origin, ...]

    def summary(self) -> dict[str, int]:
        """The number of rows of each origin."""
        found = Counter(self.origins)
        return {origin.value: found[origin] for origin in Origin if found[origin]}


def merge(
    sources: Mapping[str, SourceEmbedding],
    target: Sequence[str],
    otherwise: Tensor,
    *,
    weighting: str = "counts",
    rescale: bool = True,
) -> Merged:
    """Merge rows by token string.

    A token is the mean of the same token over the sources that were trained on it. If there are
    none, each source that can spell it with tokens it was trained on contributes their mean. If no
    source can, rows of the token that were never trained are used.

    Args:
        sources: embeddings by name of the source.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d]; the rows of tokens that no source has, used unchanged.
        weighting: weights of sources in a mean. ``counts``: the count of the token, or its expected
            count in these pieces. ``uniform``: equal weights.
        rescale: whether c_v is as above, or 1.

    Raises:
        ValueError: ``weighting`` is unknown, or sizes or strings do not fit together.
    """
    check(sources, target, otherwise, weighting)
    return combine(sources, map(mean_recipe(sources, weighting), target), otherwise, rescale)


def mean_recipe(
    sources: Mapping[str, SourceEmbedding], weighting: str
) -> Callable[[str], tuple[Origin, Parts]]:
    """Make a function that gives the parts of a token's row: see :func:`merge`.

    Args:
        sources: embeddings by name of the source.
        weighting: ``counts`` or ``uniform``.
    """
    counts = {name: source.counts.tolist() for name, source in sources.items()}
    rows = {name: index(source.tokens) for name, source in sources.items()}
    spellers = {name: speller(source.tokens, counts[name]) for name, source in sources.items()}
    by_count = weighting == "counts"

    def recipe(token: str) -> tuple[Origin, Parts]:
        held = {name: rows[name][token] for name in sources if token in rows[name]}
        seen = [(k, row, counts[k][row]) for k, row in held.items() if counts[k][row] > 0]
        if seen:
            return Origin.SHARED, [(k, row, n if by_count else 1.0) for k, row, n in seen]
        if is_text(token):
            spelled = {name: spelling for name in sources if (spelling := spellers[name](token))}
            if spelled:
                most = max(log_count for _, log_count in spelled.values()) if by_count else 0.0
                return Origin.PIECES, [
                    (k, row, (math.exp(log_count - most) if by_count else 1.0) / len(pieces))
                    for k, (pieces, log_count) in spelled.items()
                    for row in pieces
                ]
        if held:
            return Origin.UNSEEN, [(name, row, 1.0) for name, row in held.items()]
        return Origin.UNTOUCHED, []

    return recipe


def combine(
    sources: Mapping[str, SourceEmbedding],
    recipes: Iterable[tuple[Origin, Parts]],
    otherwise: Tensor,
    rescale: bool,
) -> Merged:
    """Combine the parts of each row, as above; weights of a row need not sum to 1.

    Args:
        sources: embeddings by name of the source.
        recipes: for each row of the result, in order, its origin and its parts: source, row of the
            source, and a weight above 0.
        otherwise: float[rows, d], on the CPU; the values of rows whose origin is ``UNTOUCHED``.
        rescale: whether a row gets the mean length of its parts.

    Returns:
        The embedding, float32[rows, d], with the origin of each row.
    """
    origins: list[Origin] = []
    entries: dict[str, list[tuple[int, int, float]]] = {name: [] for name in sources}
    for i, (origin, parts) in enumerate(recipes):
        origins.append(origin)
        total = math.fsum(weight for _, _, weight in parts)
        for name, row, weight in parts:
            entries[name].append((i, row, weight / total))
    rows, width = otherwise.shape
    vectors, lengths = torch.zeros(rows, width), torch.zeros(rows, 1)
    for name, source in sources.items():
        if not entries[name]:
            continue
        targets, parts, weights = zip(*entries[name], strict=True)
        places = torch.tensor([targets, parts])
        mix = torch.sparse_coo_tensor(places, torch.tensor(weights), (rows, len(source.tokens)))
        x = source.vectors.float()
        vectors += torch.sparse.mm(mix, x)
        lengths += torch.sparse.mm(mix, x.norm(dim=1, keepdim=True))
    if rescale:
        # Where parts cancel there is no direction to keep: zero stays zero.
        vectors *= lengths / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    untouched = torch.tensor([origin is Origin.UNTOUCHED for origin in origins], dtype=torch.bool)
    filled = torch.where(untouched[:, None], otherwise.float(), vectors)
    return Merged(filled, tuple(origins))


def check(
    sources: Mapping[str, SourceEmbedding], target: Sequence[str], otherwise: Tensor, weighting: str
) -> None:
    """Refuse arguments that do not fit together: see :func:`merge`.

    Args:
        sources: embeddings by name of the source.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d]; the rows of tokens that no source has.
        weighting: one of ``WEIGHTINGS``.

    Raises:
        ValueError: ``weighting`` is unknown, a shape does not fit, or a source has two rows for one
            token string.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}: set it to one of {', '.join(WEIGHTINGS)}")
    if otherwise.ndim != 2 or len(otherwise) != len(target):
        raise ValueError(f"{len(target)} target tokens need as many rows, not {otherwise.shape}")
    for name, source in sources.items():
        n, width = len(source.tokens), otherwise.shape[1]
        if source.vectors.shape != (n, width) or source.counts.shape != (n,):
            raise ValueError(
                f"source {name}: {n} tokens need vectors [{n}, {width}] and counts [{n}], not "
                f"{list(source.vectors.shape)} and {list(source.counts.shape)}"
            )
        if len(index(source.tokens)) < n:
            twice = next(token for token, times in Counter(source.tokens).items() if times > 1)
            raise ValueError(f"source {name} has two rows for {twice!r}")


def index(tokens: Sequence[str]) -> dict[str, int]:
    """The row of each token."""
    return {token: row for row, token in enumerate(tokens)}
