"""Ways to make one embedding out of the private ones of sources, by the name of the option.

``mean`` (merged.py) copies the row of a token that a single source was trained on, so that rows of
one embedding stand in the spaces of different sources. The other two write such a row in the
*common space*: that of the tokens which at least two sources were trained on, whose rows are means
over these sources. They differ in how a token is expressed by shared ones: ``subwords`` by its
spelling, ``sparse`` by its geometry.

All are pure functions of the same arguments: see :func:`dept.embeddings.merged.merge`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dept.embeddings.merged import (
    Merged,
    Origin,
    Parts,
    SourceEmbedding,
    check,
    combine,
    index,
    mean_recipe,
    merge,
)
from dept.embeddings.token_strings import is_text, speller

COMMON = ""  # the common space, beside the sources, none of which is called so
ATOMS = 4096  # shared tokens that a row may be made of: those that were trained most
NONZERO = 8  # shared tokens that a row is made of


def subwords(
    sources: Mapping[str, SourceEmbedding],
    target: Sequence[str],
    otherwise: Tensor,
    *,
    weighting: str = "counts",
    rescale: bool = True,
) -> Merged:
    """Merge rows; a token that is not shared is the mean of the shared tokens that spell it.

    A token that shared ones cannot spell has the row that :func:`merge` gives it.

    Args:
        sources: embeddings by name of the source.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d]; the rows of tokens that no source has, used unchanged.
        weighting: as in :func:`merge`.
        rescale: as in :func:`merge`.

    Raises:
        ValueError: as :func:`merge`.
    """
    check(sources, target, otherwise, weighting)
    shared = common(sources, weighting, rescale)
    return _spelled(shared, sources, target, otherwise, weighting, rescale)


def _spelled(
    shared: SourceEmbedding,
    sources: Mapping[str, SourceEmbedding],
    target: Sequence[str],
    otherwise: Tensor,
    weighting: str,
    rescale: bool,
) -> Merged:
    row_of, spell = index(shared.tokens), speller(shared.tokens, shared.counts.tolist())
    by_mean = mean_recipe(sources, weighting)

    def recipe(token: str) -> tuple[Origin, Parts]:
        if token in row_of:
            return Origin.SHARED, [(COMMON, row_of[token], 1.0)]
        if is_text(token) and (spelling := spell(token)):
            return Origin.PIECES, [(COMMON, row, 1.0) for row in spelling[0]]
        return by_mean(token)

    return combine({COMMON: shared, **sources}, map(recipe, target), otherwise, rescale)


def sparse(
    sources: Mapping[str, SourceEmbedding],
    target: Sequence[str],
    otherwise: Tensor,
    *,
    weighting: str = "counts",
    rescale: bool = True,
) -> Merged:
    """Merge rows; a token of one source is a sparse combination of shared ones.

    Its row in the space of its source is approximated there by a few shared tokens, with orthogonal
    matching pursuit; the row is the same combination of their rows in the common space (arXiv
    2506.06607, there between two models). A token that no source was trained on is as in
    :func:`subwords`.

    Args:
        sources: embeddings by name of the source.
        target: token strings of the global tokenizer, in the order of ids.
        otherwise: float[len(target), d]; the rows of tokens that no source has, used unchanged.
        weighting: as in :func:`merge`.
        rescale: whether such a row gets the length that it has in the space of its source; of other
            rows as in :func:`merge`.

    Raises:
        ValueError: as :func:`merge`.
    """
    check(sources, target, otherwise, weighting)
    shared = common(sources, weighting, rescale)
    found = _spelled(shared, sources, target, otherwise, weighting, rescale)
    place, is_shared = index(target), {*shared.tokens}
    vectors, origins = found.vectors.clone(), list(found.origins)
    order = torch.argsort(shared.counts, descending=True, stable=True).tolist()
    for source in sources.values():
        row_of, trained = index(source.tokens), source.counts > 0
        alone = [
            token
            for token, row in row_of.items()
            if trained[row] and token in place and token not in is_shared
        ]
        held = [(i, row_of[shared.tokens[i]]) for i in order if shared.tokens[i] in row_of]
        atoms = [i for i, row in held if trained[row]][:ATOMS]
        if not alone or not atoms:
            continue
        here = source.vectors[[row_of[shared.tokens[i]] for i in atoms]].float()
        wanted = source.vectors[[row_of[token] for token in alone]].float()
        weights = torch.from_numpy(pursuit(here.numpy(), wanted.numpy()))
        rows = weights @ shared.vectors[atoms]
        if rescale:
            lengths = wanted.norm(dim=1, keepdim=True)
            rows *= lengths / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        places = [place[token] for token in alone]
        vectors[places] = rows
        for i in places:
            origins[i] = Origin.SPARSE
    return replace(found, vectors=vectors, origins=tuple(origins))


def common(
    sources: Mapping[str, SourceEmbedding], weighting: str, rescale: bool
) -> SourceEmbedding:
    """The tokens that at least two sources were trained on, with the means of their rows.

    Args:
        sources: embeddings by name of the source.
        weighting: as in :func:`merge`.
        rescale: as in :func:`merge`.

    Returns:
        An embedding whose counts are sums over the sources.
    """
    holders: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for source in sources.values():
        for token, count in zip(source.tokens, source.counts.tolist(), strict=True):
            if count > 0:
                holders[token] += 1
                counts[token] += count
    tokens = tuple(token for token, times in holders.items() if times > 1)
    width = next(iter(sources.values())).vectors.shape[1]
    merged = merge(
        sources, tokens, torch.zeros(len(tokens), width), weighting=weighting, rescale=rescale
    )
    return SourceEmbedding(tokens, merged.vectors, torch.tensor([counts[t] for t in tokens]))


def pursuit(atoms: np.ndarray, wanted: np.ndarray, nonzero: int = NONZERO) -> np.ndarray:
    """Weights of a few atoms whose sum is near to each wanted row (orthogonal matching pursuit).

    Args:
        atoms: float32[n, d].
        wanted: float32[m, d].
        nonzero: atoms of a row, at most; never more than half of d, where a row would be fitted
            whatever it is.

    Returns:
        float32[m, n], of which at most ``nonzero`` in a row are not 0.
    """
    from sklearn.linear_model import orthogonal_mp

    # Atoms must be of length 1, so that the one with the smallest angle is taken.
    atoms, wanted = (np.asarray(rows, np.float64) for rows in (atoms, wanted))
    lengths = np.maximum(np.linalg.norm(atoms, axis=1), 1e-12)
    columns = (atoms / lengths[:, None]).T
    count = max(1, min(nonzero, len(atoms), atoms.shape[1] // 2))
    with warnings.catch_warnings():
        # A row that fewer atoms give exactly ends early, which is no fault.
        warnings.filterwarnings("ignore", "\\s*Orthogonal matching pursuit ended prematurely")
        found = orthogonal_mp(columns, wanted.T, n_nonzero_coefs=count)
    return (found.reshape(len(atoms), len(wanted)).T / lengths).astype(np.float32)


COMBINATIONS: dict[str, Callable[..., Merged]] = {
    "mean": merge,
    "subwords": subwords,
    "sparse": sparse,
}
"""By the name of ``callbacks.start_from.combination``."""
