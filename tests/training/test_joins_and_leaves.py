"""Which other sources a checkpoint may be resumed with."""

from types import SimpleNamespace

import pytest

from dept.method.schedule import RoundSchedule
from dept.method.variants import VARIANTS
from dept.training import source_changes

BEFORE = {
    "sources": ["en", "it"],
    "sources_per_round": 2,
    "tokenizers": {"en": "first", "it": "first"},
}


def run(variant, hashes, allowed=True):
    options = SimpleNamespace(allow_source_changes=allowed, sharing=VARIANTS[variant])
    prepared = {name: SimpleNamespace(tokenizer_hash=value) for name, value in hashes.items()}
    schedule = RoundSchedule(tuple(hashes), 2, 5, 17)
    loader = SimpleNamespace(prepared=prepared)
    return SimpleNamespace(options=options, loader=loader, schedule=schedule)


@pytest.mark.parametrize("variant", ["glob", "trim", "spec"])
def test_a_new_source_must_be_of_the_tokenizer_of_all(variant):
    source_changes.refuse(run(variant, {"en": "first", "el": "first"}), BEFORE)
    for hashes in ({"en": "first", "el": "second"}, {"el": "second", "de": "second"}):
        with pytest.raises(ValueError, match="shards of el are of another tokenizer than the chec"):
            source_changes.refuse(run(variant, hashes), BEFORE)


def test_a_source_with_a_tokenizer_of_its_own_may_join_but_not_change_it():
    source_changes.refuse(run("spec_opt", {"en": "first", "el": "second"}), BEFORE)
    with pytest.raises(ValueError, match="the shards of en are of another tokenizer"):
        source_changes.refuse(run("spec_opt", {"en": "third", "it": "first"}), BEFORE)


def test_without_the_option_no_source_joins_leaves_or_changes_places():
    same = {"en": "first", "it": "first"}
    source_changes.refuse(run("spec", same, allowed=False), BEFORE)
    for other in ({"en": "first", "el": "first"}, {"it": "first", "en": "first"}):
        with pytest.raises(ValueError, match=r"set algorithms.dept.allow_source_changes to true"):
            source_changes.refuse(run("spec", other, allowed=False), BEFORE)
