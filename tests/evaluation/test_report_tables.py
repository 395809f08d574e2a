"""The tables of other stages, and the lines of plots, on hand-made records."""

import math
import warnings

import numpy as np
from run_record import bold, by_title, cells, everything, fine_tuned, record

from dept.evaluation.report import curves
from dept.evaluation.report.run_records import arranged
from dept.evaluation.report.tables import tables


def test_plasticity_is_a_table_of_what_the_last_step_gave_by_unseen_source():
    runs = [
        record(method, {source: value + 10 * draw}, stage, seed, source, draw=draw)
        for stage in ("plasticity", "plasticity_long")
        for method, values in (("std_steps", (300.0, 80.0)), ("spec", (250.0, 90.0)))
        for source, value in zip(("el", "de"), values, strict=True)
        for seed, draw in ((17, 0), (17, 1), (18, 0), (18, 1))
    ]
    runs.append(record("spec", {"en": 9.0}, "pretrain", held_out={"el": 9.0, "de": 9.0}))
    found = by_title(tables(arranged(runs)))
    title = "c, plasticity, 30 steps, perplexity, unseen sources, at equal steps and batch"
    table = found[title]
    assert [name for name, _ in table.head] == ["method", "el", "de", "average", "runs"]
    deviation, counted = np.std([0, 0, 10, 10], ddof=1), ["2 seeds x 2 draws"]
    assert cells(table) == {
        "STD τ=0 (steps)": [f"{m:.1f} ± {deviation:.1f}" for m in (305.0, 85.0, 195.0)] + counted,
        "SPEC": [f"{m:.1f} ± {deviation:.1f}" for m in (255.0, 95.0, 175.0)] + counted,
    }
    assert bold(table) == {("SPEC", 0), ("STD τ=0 (steps)", 1), ("SPEC", 2)}
    assert "after the last step" in table.caption and "A body for each source" not in table.caption
    lines = curves.plasticity(arranged(runs), "c", "plasticity")
    assert list(lines) == ["el", "de"] and lines["el"]["spec"].y.shape == (4, 3)


def test_tuning_shows_the_best_rate_of_each_method():
    runs = [(0.004, 2.1), (0.008, 2.0), (0.016, math.inf)]
    records = [
        record("spec", {}, "tuning", learning_rate=rate, average={"bits_per_byte": bits})
        for rate, bits in runs
    ]
    records.append(record("glob", {}, "tuning", learning_rate=0.004))
    (table,) = [t for t in tables(arranged(records)) if t.topic == "tuning"]
    assert [name for name, _ in table.head] == ["method", "0.004", "0.008", "0.016", "runs"]
    assert cells(table) == {
        "GLOB": ["2.000", "", "", "1 seed"],
        "SPEC": ["2.100", "2.000", "diverged", "1 seed"],
    }
    assert bold(table) == {("GLOB", 0), ("SPEC", 1)}


def test_rates_of_continued_pre_training_stand_beside_the_one_in_use():
    def tried(method, start, rate, values, **more):
        return [
            record(method, {}, average={"perplexity": value}, learning_rate=rate, draw=draw, **more)
            | {"setting": f"{start} {rate}", "run": f"{method} {start} {rate} {draw} {more}"}
            for draw, value in values.items()
        ]

    tuned = {"stage": "tuning_cpt"}
    runs = [
        *tried("spec", "random,", 0.004, {0: 400.0, 1: 420.0, 2: 470.0}, **tuned),
        *tried("spec", "random,", 0.016, {0: 410.0, 1: math.inf, 2: 390.0}, **tuned),
        *tried("spec", "", 0.008, {0: 380.0, 1: 385.0, 2: 390.0}),
        *tried("spec", "", 0.008, {0: 1.0, 1: 1.0, 2: 1.0}, seed=18),  # not a seed that was tried
        *tried("glob", "", 0.008, {0: 1.0}),  # no method that was tried
        *tried("glob", "pretrained", 0.008, {None: 200.0}, **tuned),
        *tried("glob", "", 0.004, {None: 210.0}, stage="cpt_pretrained"),
        *tried("spec", "merged", 0.004, {None: 180.0}, **tuned),
    ]
    (table,) = [t for t in tables(arranged(runs)) if t.topic == "tuning"]
    assert [name for name, _ in table.head] == [
        *("embedding", "method", "0.004", "0.008", "0.016", "runs")
    ]
    low, used = np.array([400.0, 420.0, 470.0]), np.array([380.0, 385.0, 390.0])
    assert [[cell.text for cell in row] for row in table.rows] == [
        [
            "random",
            "SPEC",
            f"{low.mean():.1f} ± {low.std(ddof=1):.1f}",
            f"{used.mean():.1f} ± {used.std(ddof=1):.1f}",
            "diverged (1 of 3)",
            "1 seed x 3 draws",
        ],
        ["pretrained", "GLOB", "210.0", "200.0", "", "1 seed"],
        ["merged", "SPEC", "180.0", "", "", "1 seed"],
    ]
    assert [[c.text for c in row if c.best] for row in table.rows] == [
        ["385.0 ± 5.0"],
        ["200.0"],
        ["180.0"],
    ]
    assert "random 0.008, pretrained 0.004." in table.caption


def test_studies_are_named_by_their_setting():
    records = [
        record("spec", {}, "study", seed, setting="momentum", average={"bits_per_byte": bits})
        for seed, bits in ((17, 2.0), (18, 2.5))
    ]
    for entry in records:
        entry["run"] += "-momentum"
    (table,) = [t for t in tables(arranged(records)) if t.topic == "study"]
    assert cells(table) == {"momentum": ["SPEC", "0.008", "30", "", "2.250 ± 0.354", "2 seeds"]}


def test_communication_is_what_a_source_gives_to_the_average():
    sent = {"parameters_per_step": 25.0, "reduction": 40.0, "sent_bytes": 2e6}
    records = [
        record("std_tau0", {"en": 9.0}, "pretrain", communication={"parameters_per_step": 1000}),
        record("spec", {"en": 8.0}, "pretrain", local_steps=10_000, communication=sent),
        record("isolated", {"en": 9.0}, "pretrain", source="en", communication=sent),
    ]
    (table,) = [t for t in tables(arranged(records)) if t.topic == "communication"]
    assert cells(table) == {
        "STD τ=0": ["1,000", "1 times", "0.1 MB", "", "", "1 seed"],
        "isolated": ["0", "", "0.0 MB", "", "", "1 seed"],
        "SPEC": ["25", "40 times", "3.0 MB", "2.0 MB", "", "1 seed"],
    }


def test_fine_tuning_is_methods_by_tasks_beside_what_tasks_give_without_a_body():
    records = [
        fine_tuned("std_tau0", 0.70, seed=17),
        fine_tuned("std_tau0", 0.74, seed=18),
        fine_tuned("std_tau0", 0.60, init="random"),
        fine_tuned("spec", 0.78),
        fine_tuned("spec", 0.41, task="pairs", metric="pearson"),
        fine_tuned("std_tau0", -0.2, task="pairs", metric="pearson"),
        fine_tuned("glob", math.nan, task="pairs", metric="pearson"),
    ]
    (table,) = [t for t in tables(arranged(records)) if t.topic == "downstream"]
    assert table.head == [
        ("method", ""),
        ("movies", "accuracy"),
        ("pairs", "Pearson correlation"),
        ("runs", ""),
    ]
    assert cells(table) == {
        "most frequent class": ["0.500", "", ""],
        "bag of words": ["0.800", "", ""],
        "no pre-training": ["0.600", "", "1 seed"],
        "STD τ=0": ["0.720 ± 0.028", "-0.200 (1)", "2 seeds"],
        "GLOB": ["", "diverged", "1 seed"],
        "SPEC": ["0.780", "0.410", "1 seed"],
    }
    assert bold(table) == {("SPEC", 0), ("SPEC", 1)} and table.parts == (3, 4)


def test_one_head_in_other_languages_is_methods_by_sources():
    records = [
        fine_tuned("std_steps", 0.7, transfer={"it": 0.5, "ja": 0.3}),
        fine_tuned("spec", 0.6, transfer={"it": 0.4, "ja": 0.6}),
        fine_tuned("spec", 0.8, seed=18, transfer={"it": 0.4, "ja": 0.4}),
        fine_tuned("spec", 0.9, task="news"),
    ]
    _, table = [t for t in tables(arranged(records)) if t.topic == "downstream"]
    assert [name for name, _ in table.head] == [
        "method", "fine-tuned on", "it", "ja", "mean of the others", "runs"
    ]  # fmt: skip
    assert table.title == "c, movies in other languages"
    assert cells(table) == {
        "STD τ=0 (steps)": ["0.700", "0.500", "0.300", "0.400", "1 seed"],
        "SPEC": ["0.700 ± 0.141", "0.400 ± 0.000", "0.500 ± 0.141", "0.450 ± 0.071", "2 seeds"],
    }
    assert bold(table) == {("STD τ=0 (steps)", 0), ("SPEC", 0)} | {
        ("STD τ=0 (steps)", 1), ("SPEC", 2), ("SPEC", 3)
    }  # fmt: skip


def test_curves_are_means_and_tokens_of_bodies_are_added_up():
    bodies = [record("isolated", {s: 9.0}, "pretrain", source=s) for s in ("en", "it")]
    bodies[1]["curves"] = {"tokens": [10, 20], "average": {"bits_per_byte": [2.0, "inf"]}}
    line = curves.over_tokens(arranged(bodies), "c", "pretrain")["isolated"]
    assert line.x.tolist() == [1010, 2020]
    np.testing.assert_equal(line.y, [[3.0, math.nan]])

    seeds = [record("spec", {}, "pretrain", seed=seed) for seed in (17, 18)]
    seeds[1]["curves"]["tokens"] = [1000, 2000, 4000]
    line = curves.over_tokens(arranged(seeds), "c", "pretrain")["spec"]
    assert line.x.tolist() == [1000, 2000, 3000]
    assert line.y.tolist() == [[4.0, 3.0, 2.0], [4.0, 3.0, 2.5]]

    draws = [record("spec", {}, seed=17, draw=draw) for draw in (0, 1, 2)]
    assert curves.over_tokens(arranged(draws), "c", "cpt_random")["spec"].y.shape == (3, 3)


def test_a_comparison_has_tables_after_its_first_run_whichever_that_is():
    first = [r for r in everything() if r["method"] in ("spec", "std_steps") and r["seed"] == 17]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pandas, which a user would read
        for run in [*first, fine_tuned("spec", 0.5, init="random"), record("spec", {}, "study")]:
            assert len(tables(arranged([run]))) > 1
