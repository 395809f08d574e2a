"""One embedding for all sources, made from their private ones: where SPEC's next training starts.

Beyond the paper, which starts continued pre-training at random: the body of SPEC comes without a
global embedding. Every row here is a weighted mean of rows of the sources,

    row_v = c_v * sum_kr w_kr x_kr,   sum_kr w_kr = 1,   c_v = sum w_kr |x_kr| / |sum w_kr x_kr|,

where c_v gives it the length its parts have on average: a plain mean of n unrelated vectors is
sqrt(n) times shorter. The spaces of sources are not rotated onto each other first: the body was
trained around them as they are, and rotating made things worse where it was tried. An untied
head is merged as the input embedding is, by a second call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dept.embeddings.token_strings import is_text, speller

Parts = list[tuple[str, int, float]]
"""What a row is made from: source, its row, weight."""

WEIGHTINGS = ("counts", "uniform")


class Origin(str, Enum):
    """What a row was made from."""

    SHARED = "shared"  # the same token of the sources that were trained on it
    PIECES = "pieces"  # the tokens that spell it
    UNSEEN = "unseen"  # the same token of sources that have it and never met it
    UNTOUCHED = "untouched"  # nothing


@dataclass(frozen=True)
class SourceEmbedding:
    """A token matrix of one source.

    Attributes:
        tokens: string of each row, all different; see ``token_strings.strings_of``.
        vectors: float[rows, d], on the CPU.
        counts: [rows], occurrences in what the source was trained on. Its text is not all of
            that: sources of different size that were trained on equally many tokens are weighted
            alike by counts that were scaled to those.
    """

    tokens: tuple[str, ...]
    vectors: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Merged:
    """A global embedding.

    Attributes:
        vectors: float32[len(target), d].
        origins: of each row.
    """

    vectors: Tensor
    origins: tuple[Origin, ...]

    def summary(self) -> dict[str, int]:
        """How many rows there are of each origin."""
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
    """Make rows by token string.

    A token is the mean of the same token of the sources that were trained on it. If there are
    none, each source that can spells it with tokens it was trained on, and gives their mean.
    If none can, rows that were never met are still better than none.

    Args:
        sources: by name.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d]; the rows that the sources have nothing for, unchanged.
        weighting: of sources in a mean. ``counts``: by how often they met the token, or would
            have met it in these pieces by the counts of them. ``uniform``: the same for all.
        rescale: whether c_v is as above, or 1.

    Raises:
        ValueError: ``weighting`` is unknown, or sizes or strings do not fit together.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}: take one of {', '.join(WEIGHTINGS)}")
    check(sources, target, otherwise)
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

    return combine(sources, map(recipe, target), otherwise, rescale)


def combine(
    sources: Mapping[str, SourceEmbedding],
    recipes: Iterable[tuple[Origin, Parts]],
    otherwise: Tensor,
    rescale: bool,
) -> Merged:
    """Make each row of its parts, as above; weights of a row need not sum to 1."""
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
    untouched = torch.tensor([[origin is Origin.UNTOUCHED] for origin in origins])
    return Merged(torch.where(untouched, otherwise.float(), vectors), tuple(origins))


def check(sources: Mapping[str, SourceEmbedding], target: Sequence[str], otherwise: Tensor) -> None:
    """Refuse what does not fit together: see :func:`merge`."""
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
