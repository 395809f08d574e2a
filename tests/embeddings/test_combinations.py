"""Rows of one source expressed by shared tokens, against scikit-learn and numpy used directly.

Embeddings are real: two halves of this repository's own text, each as the singular vectors of how
often its words stand beside one another.
"""

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds
from sklearn.linear_model import OrthogonalMatchingPursuit

from dept.config.options import StartFromOptions
from dept.embeddings.combinations import COMBINATIONS, NONZERO, common, pursuit
from dept.embeddings.merged import Origin, SourceEmbedding
from dept.embeddings.token_strings import MARK
from dept.errors import ConfigError

WIDTH = 40
DOCS = Path(__file__).parents[2] / "docs"


def embedding_of(*files):
    """Words of a text that occur twice or more, and their letters, in the order of their counts."""
    text = "\n".join((DOCS / file).read_text() for file in files).lower()
    words = re.findall(r"[a-z]+", text)
    stream = [token for word in words for token in (word, *(word if len(word) > 9 else ""))]
    counts = Counter(stream)
    names = [token for token, count in counts.most_common() if count > 1]
    place = {token: i for i, token in enumerate(names)}
    ids = [place[token] for token in stream if token in place]
    pairs = [np.stack([ids[:-gap], ids[gap:]]) for gap in (1, 2, 3)]
    rows, columns = np.concatenate(pairs, axis=1)
    beside = coo_array((np.ones(len(rows)), (rows, columns)), (len(names), len(names))).tocsr()
    left, values, _ = svds(np.log1p(beside), k=WIDTH, v0=np.ones(len(names)))
    vectors = torch.tensor((left * np.sqrt(values)).copy(), dtype=torch.float32)
    return SourceEmbedding(tuple(names), vectors, torch.tensor([float(counts[n]) for n in names]))


@pytest.fixture(scope="module")
def sources():
    return {
        "run": embedding_of("workers.md", "reliability.md", "federation.md"),
        "use": embedding_of("experiments.md", "data.md", "models.md", "robust.md"),
    }


@pytest.fixture(scope="module")
def target(sources):
    """All tokens, and three that no source has."""
    known = dict.fromkeys(token for source in sources.values() for token in source.tokens)
    return [*known, "sourcecheckpoint", "жук", MARK + "<|mask|>"]


def otherwise(target):
    return torch.full((len(target), WIDTH), 0.25)


def rows_of(source):
    return {t: v.numpy().astype(float) for t, v in zip(source.tokens, source.vectors, strict=True)}


def shared_rows(sources):
    """Means by count of the tokens of both sources, of the mean length."""
    run, use = (rows_of(source) for source in sources.values())
    counts = [dict(zip(s.tokens, s.counts.tolist(), strict=True)) for s in sources.values()]
    found = {}
    for token in run.keys() & use.keys():
        weight = counts[0][token] / (counts[0][token] + counts[1][token])
        mean = weight * run[token] + (1 - weight) * use[token]
        length = weight * np.linalg.norm(run[token]) + (1 - weight) * np.linalg.norm(use[token])
        found[token] = mean / np.linalg.norm(mean) * length
    return found


def test_the_text_is_enough_to_test_with(sources):
    shared = shared_rows(sources)
    assert len(shared) > 200 and all(len(s.tokens) - len(shared) > 50 for s in sources.values())


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_shared_tokens_are_the_same_means_in_all(sources, target, combination):
    merged = COMBINATIONS[combination](sources, target, otherwise(target))
    for token, expected in shared_rows(sources).items():
        row = target.index(token)
        np.testing.assert_allclose(merged.vectors[row].numpy(), expected, rtol=1e-4, atol=1e-5)
        assert merged.origins[row] is Origin.SHARED
    assert torch.equal(merged.vectors[-2:], otherwise(target)[-2:])
    assert merged.origins[-2:] == (Origin.UNTOUCHED, Origin.UNTOUCHED)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_sparse_row_is_what_scikit_learn_finds_in_the_space_of_its_source(
    sources, target, rescale
):
    merged = COMBINATIONS["sparse"](sources, target, otherwise(target), rescale=rescale)
    shared, checked = shared_rows(sources), 0
    if not rescale:
        shared = dict(zip(*plain_means(sources), strict=True))
    for source in sources.values():
        here = rows_of(source)
        names = [t for t in source.tokens if t in shared]
        atoms = np.array([here[t] / np.linalg.norm(here[t]) for t in names]).T
        for token in [t for t in source.tokens if t not in shared][::7]:
            model = OrthogonalMatchingPursuit(n_nonzero_coefs=NONZERO, fit_intercept=False)
            weights = model.fit(atoms, here[token]).coef_
            used = np.flatnonzero(weights)
            row = sum(weights[i] / np.linalg.norm(here[names[i]]) * shared[names[i]] for i in used)
            if rescale:
                row *= np.linalg.norm(here[token]) / np.linalg.norm(row)
            place = target.index(token)
            assert merged.origins[place] is Origin.SPARSE
            ours = merged.vectors[place].numpy()
            np.testing.assert_allclose(ours, row, rtol=1e-3, atol=1e-4 * np.abs(row).max())
            checked += 1
    assert checked > 20


def plain_means(sources):
    run, use = (rows_of(source) for source in sources.values())
    counts = [dict(zip(s.tokens, s.counts.tolist(), strict=True)) for s in sources.values()]
    names = sorted(run.keys() & use.keys())
    rows = [
        (counts[0][t] * run[t] + counts[1][t] * use[t]) / (counts[0][t] + counts[1][t])
        for t in names
    ]
    return names, rows


def test_pursuit_is_greedy_least_squares():
    """Against the algorithm as it is defined, in plain numpy."""
    generator = np.random.default_rng(0)
    atoms = generator.normal(size=(60, 24)) * generator.uniform(0.1, 9, size=(60, 1))
    wanted = generator.normal(size=(5, 24))
    found = pursuit(atoms.astype(np.float32), wanted.astype(np.float32), nonzero=6)
    for weights, row in zip(found, wanted, strict=True):
        chosen, residual = [], row
        for _ in range(6):
            cosines = atoms @ residual / np.linalg.norm(atoms, axis=1)
            chosen.append(int(np.abs(cosines).argmax()))
            fitted, *_ = np.linalg.lstsq(atoms[chosen].T, row, rcond=None)
            residual = row - fitted @ atoms[chosen]
        expected = np.zeros(60)
        expected[chosen] = fitted
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_never_made_of_more_atoms_than_half_its_width():
    generator = np.random.default_rng(1)
    atoms, wanted = generator.normal(size=(50, 8)), generator.normal(size=(3, 8))
    assert (np.count_nonzero(pursuit(atoms, wanted, nonzero=16), axis=1) == 4).all()
    exact = pursuit(atoms, atoms[:1] * 3)  # ends after one atom, and warns of nothing
    assert exact[0, 0] == pytest.approx(3) and np.count_nonzero(exact) == 1


def test_a_subword_row_is_the_mean_of_the_shared_tokens_that_spell_it(sources, target):
    merged = COMBINATIONS["subwords"](sources, target, otherwise(target), rescale=False)
    names, rows = plain_means(sources)
    shared = dict(zip(names, rows, strict=True))
    counts = sum((Counter(dict(zip(s.tokens, s.counts.tolist(), strict=True)))
                  for s in sources.values()), Counter())  # fmt: skip
    total = sum(counts[t] for t in shared)

    def best(word):
        """The most probable pieces, by trying all."""
        if not word:
            return 0.0, []
        options = [
            (np.log(counts[word[:n]] / total) + rest[0], [word[:n], *rest[1]])
            for n in range(1, len(word) + 1)
            if word[:n] in shared and (rest := best(word[n:])) is not None
        ]
        return max(options, default=None)

    run = sources["run"]
    alone = [t for t in run.tokens if t not in shared and len(t) < 10]
    for token in (*alone[:12], "sourcecheckpoint"):
        row = merged.vectors[target.index(token)].numpy()
        expected = np.mean([shared[piece] for piece in best(token)[1]], axis=0)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-5)
        assert merged.origins[target.index(token)] is Origin.PIECES


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_one_source_keeps_its_rows_bit_for_bit(sources, combination):
    one = {"use": sources["use"]}
    merged = COMBINATIONS[combination](one, one["use"].tokens, otherwise(one["use"].tokens))
    assert torch.equal(merged.vectors, one["use"].vectors)


def test_tokens_that_one_source_was_never_trained_on_are_not_shared(sources):
    counts = torch.where(torch.arange(len(sources["use"].tokens)) < 30, sources["use"].counts, 0)
    use = SourceEmbedding(sources["use"].tokens, sources["use"].vectors, counts)
    found = common({"run": sources["run"], "use": use}, "counts", rescale=True)
    assert set(found.tokens) == {*use.tokens[:30]} & {*sources["run"].tokens}


def test_the_option_names_the_functions():
    default = {field.name: field.default for field in fields(StartFromOptions)}["combination"]
    assert default == next(iter(COMBINATIONS))
    for name in COMBINATIONS:
        StartFromOptions(checkpoint="x", combination=name)
    with pytest.raises(ConfigError, match="mean, subwords, sparse"):
        StartFromOptions(checkpoint="x", combination="dense")
