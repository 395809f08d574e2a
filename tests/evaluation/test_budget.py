"""Tokens and core-hours of runs, by hand."""

from types import SimpleNamespace

import pytest

from dept.errors import ConfigError
from dept.evaluation.reproduce import budget
from dept.evaluation.reproduce.budget import Tokens, by_part, tokens_of

VALIDATION = {"en": 1000, "it": 2000, "el": 4000}


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    """Two sources and a held-out one."""

    def read(loader, dept):
        source = lambda name, tokenizer: SimpleNamespace(  # noqa: E731
            splits={"val": SimpleNamespace(tokens=VALIDATION[name])}
        )
        found = SimpleNamespace(sources=("en", "it"), held_out=("el",), source=source)
        return found, tuple(loader.sources or found.sources)

    monkeypatch.setattr(budget, "corpus_and_sources", read)


def config(variant=None, loader=(), dept=(), **more):
    if variant is None:
        trained = {"train_loader": {"name": "mixture", "corpus": "c", "epoch_batches": 10}}
    else:
        options = {"variant": variant, "local_steps": 10, **dict(dept)}
        trained = {
            "train_loader": {"name": "sources", "corpus": "c"},
            "algorithms": {"dept": options},
        }
    trained["train_loader"] |= dict(loader)
    return {
        "max_duration": "3ep", "eval_interval": "1ep", "max_seq_len": 64,
        "global_train_batch_size": 4, "device_eval_batch_size": 2, **trained,
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("given", "steps", "evaluated"),
    [
        (config(), 30, 3 * 7000),
        (config(max_duration="25ba", eval_interval="10ba"), 25, 3 * 7000),
        (config(eval_first=True), 30, 4 * 7000),
        (config(eval_interval="2ep"), 30, 2 * 7000),
        (config(callbacks={"source_metrics": {"held_out_interval": "3ep"}}), 30, 9000 + 4000),
        (config(eval_subset_num_batches=10), 30, 3 * (1000 + 1280 + 1280)),
        (config(eval_loaders=[{"source": "el"}]), 30, 3 * 4000),
        (config("glob"), 60, 3 * 7000),
        (config("spec"), 60, 3 * 3000),
        (config("spec_opt", loader={"sources": ["it"]}), 30, 3 * 2000),
        (config("spec", dept={"sources_per_round": 1}), 30, 3 * 3000),
    ],
)
def test_tokens_of_a_run(given, steps, evaluated):
    assert tokens_of(given) == Tokens(steps * 4 * 64, evaluated)


def test_core_hours_count_a_token_of_validation_as_a_third():
    assert Tokens(7_200_000, 0).core_hours(speed=1000) == pytest.approx(2.0)
    assert Tokens(0, 10_800_000).core_hours(speed=1000, cost=2.5) == pytest.approx(2.5)


def test_a_duration_that_is_no_count_is_refused():
    with pytest.raises(ConfigError, match="'1dur' cannot be estimated: write a duration as 10ep"):
        tokens_of(config(max_duration="1dur"))


def test_parts_are_summed_in_order():
    import pandas as pd

    costs = pd.DataFrame(
        {
            "part": ["b", "a", "b"],
            "tokens": [1.0, 2.0, float("nan")],
            "core_hours": [0.5, 2.0, float("nan")],
            "finished": [True, False, False],
        }
    )
    found = by_part(costs)
    assert found.index.tolist() == ["b", "a"]
    assert found["runs"].tolist() == [2, 1] and found["finished"].tolist() == [1, 0]
    assert found["core_hours"].tolist() == [0.5, 2.0] and found["up_to_here"].tolist() == [0.5, 2.5]
