"""How often sources were read."""

import pytest

from callbacks.passes import line, of_mixture, passes
from dept.corpus import read_corpus
from dept.options import MixtureOptions


def test_what_was_read_more_than_once_is_said_in_a_line():
    often = passes({"en": 50, "ga": 250, "hi": 110}, {"en": 100, "ga": 100, "hi": 100})
    assert often == {"en": 0.5, "ga": 2.5, "hi": 1.1}
    sources = {name: {"passes": value} for name, value in often.items()}
    said = line({**sources, "de": {}})
    assert said == "Read more than once, each time in a new order: ga 2.5, hi 1.1 times."
    assert line({"en": sources["en"]}) is None


def test_sources_of_a_mixture_share_its_tokens(prepared):
    corpus = read_corpus(prepared, "tiny")
    sizes = {name: corpus.source(name).splits["train"].tokens for name in corpus.sources}
    every = of_mixture(MixtureOptions("tiny", root=str(prepared), tau=1), sum(sizes.values()))
    assert every == {name: pytest.approx(1) for name in sizes}
    uniform = of_mixture(MixtureOptions("tiny", root=str(prepared)), 4000)
    assert uniform == {name: 1000 / size for name, size in sizes.items()}
