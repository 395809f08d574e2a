"""A global embedding from private ones, by token string."""

import pytest
import torch

from dept.embeddings.merged import SourceEmbedding, merge
from dept.embeddings.token_strings import MARK

WIDTH = 5
EOS = MARK + "</s>"
TEXT = {
    "en": {"a": 6, " b": 2, "ing": 0, EOS: 4, MARK + "<0xE4>": 0},
    "it": {"a": 3, "ing": 5, " b": 0, "c": 7, EOS: 4},
    "zh": {"x": 9, MARK + "<0xE4>": 0},
}
TARGET = [EOS, "a", " b", "ing", "aing", "cx", "ab", MARK + "<0xE4>", MARK + "<|mask|>"]


def source(counts, seed=0, vectors=None):
    generator = torch.Generator().manual_seed(seed)
    if vectors is None:
        vectors = torch.randn(len(counts), WIDTH, generator=generator)
    return SourceEmbedding(tuple(counts), vectors, torch.tensor(list(counts.values())))


@pytest.fixture
def sources():
    return {name: source(counts, seed) for seed, (name, counts) in enumerate(TEXT.items())}


@pytest.fixture
def otherwise():
    return torch.full((len(TARGET), WIDTH), 0.25)


def row(sources, name, token):
    return sources[name].vectors[sources[name].tokens.index(token)]


def mean(*weighted):
    total = sum(weight for weight, _ in weighted)
    return sum(weight / total * vector for weight, vector in weighted)


def longer(*weighted):
    """The mean, of the mean length."""
    direction = mean(*weighted)
    return direction / direction.norm() * mean(*[(w, v.norm()) for w, v in weighted])


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("weighting", ["counts", "uniform"])
def test_rows_are_weighted_means_of_the_same_token_or_of_its_pieces(
    sources, otherwise, weighting, rescale
):
    merged = merge(sources, TARGET, otherwise, weighting=weighting, rescale=rescale)
    of, by_count = longer if rescale else mean, weighting == "counts"
    en, it = (lambda t: row(sources, "en", t)), (lambda t: row(sources, "it", t))
    a = of((6 if by_count else 1, en("a")), (3 if by_count else 1, it("a")))
    expected = [
        of((1, en(EOS)), (1, it(EOS))),
        a,
        en(" b"),  # `it` has a row and never met it
        it("ing"),
        of((1, it("a")), (1, it("ing"))),  # not with the row of `en` that never met "ing"
        otherwise[5],  # no source knows both letters
        otherwise[6],  # "b" is no token; " b" is another text
        of((1, row(sources, "en", TARGET[7])), (1, row(sources, "zh", TARGET[7]))),
        otherwise[8],  # special: nothing to spell
    ]
    torch.testing.assert_close(merged.vectors, torch.stack(expected))
    assert [origin.value for origin in merged.origins] == [
        *["shared"] * 4, "pieces", "untouched", "untouched", "unseen", "untouched",
    ]  # fmt: skip
    assert merged.summary() == {"shared": 4, "pieces": 1, "unseen": 1, "untouched": 3}


def test_a_source_counts_for_a_spelling_as_often_as_it_would_have_written_it(otherwise):
    sources = {"en": source({"a": 30, "b": 10}), "it": source({"a": 2, "b": 1, "c": 1}, seed=1)}
    merged = merge(sources, ["ab"], otherwise[:1])
    en, it = 40 * (30 / 40) * (10 / 40), 4 * (2 / 4) * (1 / 4)
    pieces = [(w, row(sources, k, t)) for k, w in (("en", en), ("it", it)) for t in "ab"]
    torch.testing.assert_close(merged.vectors[0], longer(*pieces))


def test_one_source_keeps_its_rows_bit_for_bit(sources):
    one = {"it": sources["it"]}
    merged = merge(one, one["it"].tokens, torch.zeros(5, WIDTH))
    assert torch.equal(merged.vectors, one["it"].vectors)


def test_parts_that_cancel_give_zero_and_the_same_call_the_same_bits(sources, otherwise):
    opposite = {"en": source({"a": 1}), "it": source({"a": 1}, vectors=-source({"a": 1}).vectors)}
    assert not merge(opposite, ["a"], otherwise[:1]).vectors.any()
    first, second = (merge(sources, TARGET, otherwise) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)


def test_what_does_not_fit_together_is_refused(sources, otherwise):
    with pytest.raises(ValueError, match="weighting is 'tokens': set it to one of counts, uniform"):
        merge(sources, TARGET, otherwise, weighting="tokens")
    with pytest.raises(ValueError, match="8 target tokens need as many rows"):
        merge(sources, TARGET[:-1], otherwise)
    with pytest.raises(ValueError, match=r"source en: 1 tokens need vectors \[1, 5\]"):
        merge({"en": source({"a": 1}, vectors=torch.ones(1, 4))}, TARGET, otherwise)
    twice = SourceEmbedding(("a", "a"), torch.ones(2, WIDTH), torch.ones(2))
    with pytest.raises(ValueError, match="source en has two rows for 'a'"):
        merge({"en": twice}, TARGET, otherwise)
