"""How often sources were read."""

from dept.training.passes import line, passes


def test_what_was_read_more_than_once_is_said_in_a_line():
    often = passes({"en": 50, "ga": 250, "hi": 110}, {"en": 100, "ga": 100, "hi": 100})
    assert often == {"en": 0.5, "ga": 2.5, "hi": 1.1}
    sources = {name: {"passes": value} for name, value in often.items()}
    said = line({**sources, "de": {}})
    assert said == "Read more than once, each time in a new order: ga 2.5, hi 1.1 times."
    assert line({"en": sources["en"]}) is None
