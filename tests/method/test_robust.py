"""Rules for the average, against loops in numpy and scipy that follow the papers' definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from dept.errors import ConfigError
from dept.method.aggregation import Aggregation
from dept.method.averaging import Share, mean_update
from dept.method.robust import clipped, krum_scores, squared_distances, trimmed_mean
from dept.method.rules import rule_of

SHAPES = {"body": (6, 5), "bias": (4,)}
ROWS = 12
HELD = {  # row 0 of all, 1 of four, 2 of two, 3 of one, ...; 11 of none
    "a": [0, 1, 2, 3, 6, 7],
    "b": [0, 1, 2, 5, 6],
    "c": [0, 1, 4, 6, 8],
    "d": [0, 1, 6, 9],
    "e": [0, 6, 10],
}


def updates(by_row=True, seed=0, sources="abcde"):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    found = {}
    for source in sources:
        rows = torch.tensor(HELD[source])
        update = {name: draw(*shape) for name, shape in SHAPES.items()}
        update["phi"] = draw(len(rows) if by_row else ROWS, 3)
        found[source] = (update, Share(1.0, {"phi": rows} if by_row else {}))
    return found


START = {name: torch.zeros(shape) for name, shape in SHAPES.items()} | {"phi": torch.zeros(ROWS, 3)}


def rows_of(found):
    every = {
        i for _, share in found.values() for i in share.rows.get("phi", torch.tensor([])).tolist()
    }
    return {"phi": torch.tensor(sorted(every))} if every else {}


def at(found, name, row):
    """The values of a row of a parameter, of each source that holds it, as numpy."""
    values = []
    for update, share in found.values():
        rows = share.rows[name].tolist() if name in share.rows else range(len(START[name]))
        if row in rows:
            values.append(update[name][[*rows].index(row)].numpy())
    return np.stack(values) if values else None


def by_hand(found, combine):
    """Each row of each parameter that anyone holds, combined over its holders alone."""
    every = {}
    for name in START:
        ids = rows_of(found).get(name, torch.arange(len(START[name]))).tolist()
        every[name] = np.stack([combine(at(found, name, row)) for row in ids])
    return every


def close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name].numpy(), value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("trim", [1, 2])
def test_a_trimmed_mean_is_that_of_scipy_over_the_holders_of_a_row(by_row, trim):
    found = updates(by_row)

    def combine(values):
        cut = min(trim, (len(values) - 1) // 2)  # as many as leave one or two
        return trim_mean(values, (cut + 0.5) / len(values) if cut else 0.0, axis=0)

    combined, chosen = rule_of("trimmed_mean", trim=trim).combine(found, START, rows_of(found))
    close(combined, by_hand(found, combine))
    assert chosen == tuple("abcde")


@pytest.mark.parametrize("sources", ["abcde", "abcd", "ab"])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_median_is_that_of_numpy(by_row, sources):
    found = updates(by_row, sources=sources)
    combined, _ = rule_of("median").combine(found, START, rows_of(found))
    close(combined, by_hand(found, lambda values: np.median(values, axis=0)))


def krum_by_hand(vectors, faulty, count):
    """Blanchard et al. 2017, Section 4: the sum over the n - f - 2 closest, the least of which."""
    n, scores = len(vectors), []
    for i in range(n):
        distances = sorted(
            float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i
        )
        scores.append(sum(distances[: n - faulty - 2]))
    return sorted(sorted(range(n), key=scores.__getitem__)[:count]), scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "count"), [("krum", 1), ("multi_krum", 4)])
@pytest.mark.parametrize("by_row", [False, True])
def test_krum_selects_as_in_its_paper_and_averages_rows_over_selected_holders(
    by_row, name, count, seed
):
    found = updates(by_row, seed)
    common = [0, 6]  # rows that all five hold
    vectors = []
    for update, share in found.values():
        phi = update["phi"]
        if by_row:
            phi = phi[[share.rows["phi"].tolist().index(row) for row in common]]
        parts = [update["body"], update["bias"], phi]
        vectors.append(np.concatenate([part.double().numpy().ravel() for part in parts]))
    selected, scores = krum_by_hand(vectors, 1, count)
    distances = squared_distances(found, rows_of(found))
    np.testing.assert_allclose(krum_scores(distances, 1).numpy(), scores, rtol=1e-9)
    combined, chosen = rule_of(name).combine(found, START, rows_of(found))
    assert chosen == tuple("abcde"[i] for i in selected)
    kept = {source: found[source] for source in chosen}
    for parameter in START:
        ids = rows_of(found).get(parameter, torch.arange(len(START[parameter]))).tolist()
        for place, row in enumerate(ids):
            values = at(kept, parameter, row)
            expected = 0.0 if values is None else values.mean(axis=0)
            np.testing.assert_allclose(combined[parameter][place], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "selected"), [(4, "ab"), (3, "ab"), (2, "ab"), (1, "a")])
def test_krum_goes_without_updates_that_were_left_out_of_the_round(count, selected):
    """Of two it can say nothing; with three, the one that is far from both is not taken."""
    near = torch.zeros(3)
    values = [near, near + 0.1, near + 100, near + 0.2][:count]
    given = {s: ({"w": v}, Share()) for s, v in zip("abcd", values, strict=False)}
    _, chosen = rule_of("multi_krum", faulty=1, selected=2).combine(given, {"w": near}, {})
    assert chosen == tuple(selected)


def test_the_mean_is_that_of_the_coded_transport():
    found = updates()
    combined, _ = Aggregation().combine(found, START, rows_of(found), drawn=5, noise_seed=0)
    expected = mean_update(found.values(), START, rows_of(found))
    assert all(torch.equal(combined[name], expected[name]) for name in START)


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "krum", "multi_krum"])
def test_a_row_of_all_is_combined_like_any_other_parameter(name):
    """TRIM with every V_k = V is GLOB, under each rule; and the order of sources is that given."""
    plain = updates(by_row=False)
    whole = {"phi": torch.arange(ROWS)}
    by_row = {source: (update, Share(1.0, whole)) for source, (update, _) in plain.items()}
    ours, _ = rule_of(name).combine(by_row, START, whole)
    theirs, _ = rule_of(name).combine(plain, START, {})
    assert all(torch.equal(ours[n], theirs[n]) for n in START)


def test_pieces_of_a_parameter_make_no_difference(monkeypatch):
    found = updates()
    whole, _ = rule_of("median").combine(found, START, rows_of(found))
    monkeypatch.setattr("dept.method.robust._PIECE", 7)
    pieces, _ = rule_of("median").combine(found, START, rows_of(found))
    assert all(torch.equal(whole[n], pieces[n]) for n in START)


def test_a_coordinate_without_values_is_zero():
    values, present = torch.ones(3, 2), torch.tensor([[True, False]] * 3)
    assert trimmed_mean(values, present, 1).tolist() == [1.0, 0.0]


def test_an_update_is_scaled_to_the_limit_over_all_its_tensors_together():
    update = {"a": torch.full((3,), 2.0), "b": torch.full((2, 2), 1.0)}
    norm = math.sqrt(3 * 4 + 4)
    assert clipped(update, norm + 1e-6)["a"] is update["a"]
    scaled = clipped(update, 2.0)
    close(scaled, {name: value.numpy() * 2 / norm for name, value in update.items()})
    given = {s: (update, Share()) for s in "ab"}
    start = {name: torch.zeros_like(value) for name, value in update.items()}
    combined, _ = Aggregation(clip=2.0).combine(given, start, {}, drawn=2, noise_seed=0)
    close(combined, {name: value.numpy() for name, value in scaled.items()})


@pytest.mark.parametrize(
    ("options", "sources", "message"),
    [
        ({"name": "trimmed_mean"}, 2, "trimmed_mean, and a round has 2 .* set it to mean"),
        ({"name": "trimmed_mean", "trim": 2}, 4, "of 4 values.* trim to 1, or .* to 5 or more"),
        ({"name": "median"}, 2, "median, and a round has 2 of the 3 .* set it to mean"),
        ({"name": "krum"}, 4, "faulty: 1, which needs 5 .* has 4: set name to median"),
        ({"name": "krum", "faulty": 3}, 8, "needs 9 .* has 8: set faulty to 2"),
        ({"name": "multi_krum", "selected": 5}, 5, "selected is 5, .* set it to 4 or less"),
    ],
)
def test_rounds_of_too_few_sources_are_refused(options, sources, message):
    rule = rule_of(**options)
    with pytest.raises(ConfigError, match=message):
        rule.check(sources)
    rule.check(2 * sources + 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"average": {"name": "best"}}, "set it to one of mean, trimmed_mean, median, krum"),
        ({"average": {"name": "median", "trim": 1}}, "an option that median does not take: trim"),
        ({"average": {"name": "krum", "faulty": 0}}, "faulty is 0: set it to a whole number abo"),
        ({"average": {"name": "krum", "faulty": 1.0}}, "faulty is 1.0: set it to a whole number"),
        ({"average": {"name": "median"}, "weighted": True}, "weighting is tokens, and .* median"),
        ({"privacy": {}}, "lacks noise_multiplier"),
        ({"privacy": {"noise_multiplier": 0}}, "noise_multiplier is 0: set it between 0 and"),
        (
            {"privacy": {"noise_multiplier": 1, "epsilon": 1}},
            "no option 'epsilon'",
        ),
        ({"privacy": {"noise_multiplier": 1}, "clip": None}, "clip_update_norm is null"),
        ({"privacy": {"noise_multiplier": 1}, "weighted": True}, "tokens, which depends on the"),
        ({"privacy": {"noise_multiplier": 1}, "by_row": True}, "vocabulary of a source: set it"),
        (
            {"privacy": {"noise_multiplier": 1}, "average": {"name": "median"}},
            "median, and the guarantee is that of a mean",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Aggregation.of(**{"average": {"name": "mean"}, "clip": 1.0, "privacy": None, **given})
