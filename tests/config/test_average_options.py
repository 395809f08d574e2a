"""Averages that cannot work, as `train.py` refuses them before anything slow is imported."""

import pytest
from refusals import refusal

DEPT = "algorithms.dept"


@pytest.mark.parametrize(
    ("experiment", "options", "message"),
    [
        ("dept_spec", ["average=median"], "average is 'median': set it to {name: mean} or ano"),
        ("dept_glob", ["average={name: median}", "sources_per_round=1"], "has 1 of the 3 sources"),
        ("dept_trim", ["average={name: trimmed_mean, trim: 2}"], "set trim to 1, or sources_per_r"),
        ("dept_spec", ["average={name: krum}"], "needs 5 sources in a round, and a round has 4"),
        ("dept_spec", ["average={name: median}", "weighting=tokens"], "which has no weights: set"),
        ("dept_spec", ["clip_update_norm=0"], "clip_update_norm is 0: set it to a number above 0"),
        ("dept_spec", ["privacy={noise_multiplier: 1.0}"], "clip_update_norm is null"),
        (
            "dept_trim",
            ["privacy={noise_multiplier: 1.0}", "clip_update_norm=1.0"],
            "variant averages by token row",
        ),
    ],
)
def test_an_average_that_cannot_work_is_refused(
    prepared, capsys, monkeypatch, experiment, options, message
):
    options = [f"{DEPT}.{option}" for option in options]
    assert message in refusal(prepared, capsys, monkeypatch, experiment, *options)
