"""Turning the embedding spaces of sources into one, by the tokens they share.

Private embeddings begin at random, so nothing but the body they were trained around says that a
direction means the same in two of them. A rotation changes no product between two rows of a
source; whether the body still understands it is for measurement to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from dept.merged_embedding import SourceEmbedding, index


@dataclass(frozen=True)
class Aligned:
    """Sources in one space, as far as they share enough tokens.

    Attributes:
        sources: by name, in the order given.
        reference: the source whose space it is.
        shared: by name, how many tokens its rotation was taken from; no entry for those that
            shared fewer than needed, which are as they were.
    """

    sources: dict[str, SourceEmbedding]
    reference: str
    shared: dict[str, int]


def align(sources: Mapping[str, SourceEmbedding], minimum: int | None = None) -> Aligned:
    """Rotate each source onto the mean of those before it.

    The first is the source with most tokens, and the next always the one that shares most with the
    mean so far, so that a source without much in common with the first is reached through others.
    The rotation R minimises sum_v w_v |x_v R - y_v|^2 over the shared tokens v (orthogonal
    Procrustes), with y the mean by counts and w_v = ln(1 + the lesser count): by the counts
    themselves, a hundred commonest tokens would decide on hundreds of dimensions.

    Args:
        sources: by name; a token they were not trained on (count 0) is not taken as shared.
        minimum: shared tokens needed; d by default, as fewer leave R undetermined.

    Raises:
        ValueError: there are no sources.
    """
    if not sources:
        raise ValueError("there are no sources to align")
    id_of = index(dict.fromkeys(t for source in sources.values() for t in source.tokens))
    ids = {name: torch.tensor([id_of[t] for t in s.tokens]) for name, s in sources.items()}
    counts = {name: source.counts.double() for name, source in sources.items()}
    reference = max(sources, key=lambda name: int((counts[name] > 0).sum()))
    width = sources[reference].vectors.shape[1]
    minimum = width if minimum is None else minimum

    rotated = {reference: sources[reference].vectors.double()}
    shared: dict[str, int] = {}
    # Of the tokens of all sources: the sum of vectors over occurrences, and occurrences.
    total = torch.zeros(len(id_of), width, dtype=torch.float64)
    times = torch.zeros(len(id_of), dtype=torch.float64)
    last, waiting = reference, [name for name in sources if name != reference]
    while waiting:
        total.index_add_(0, ids[last], rotated[last] * counts[last][:, None])
        times.index_add_(0, ids[last], counts[last])
        common = {k: (counts[k] > 0) & (times[ids[k]] > 0) for k in waiting}
        last = max(waiting, key=lambda name: int(common[name].sum()))
        both, x = common[last], sources[last].vectors.double()
        if int(both.sum()) < minimum:
            break
        waiting.remove(last)
        there = times[ids[last][both]]
        y = total[ids[last][both]] / there[:, None]
        weights = torch.log1p(torch.minimum(counts[last][both], there))
        u, _, vh = torch.linalg.svd((x[both] * weights[:, None]).T @ y)
        rotated[last] = x @ (u @ vh)
        shared[last] = int(both.sum())
    return Aligned(
        sources={
            name: replace(source, vectors=rotated[name].to(source.vectors.dtype))
            if name in shared
            else source
            for name, source in sources.items()
        },
        reference=reference,
        shared=shared,
    )
