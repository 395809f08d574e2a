"""The questions that a report opens with, and the tables of studies, on hand-made records."""

import math

import pytest
from run_record import bold, cells, evaluated, record

from dept.evaluation.report import page
from dept.evaluation.report.run_records import arranged
from dept.evaluation.report.table import document
from dept.evaluation.report.tables import tables

QUESTIONS = ["Does it help me?", "What does it cost?", "What must I set?"]
HELP = "Whether DEPT is better, by comparison"
COST = "What a method computes and exchanges"
SET = "The best of what was tried"


def titled(records, *words):
    return {t.title: t for t in tables(arranged(records)) if all(w in t.title for w in words)}


def rows_of(records, title):
    return [[cell.text for cell in row] for row in titled(records, title)[title].rows]


def test_a_report_opens_with_the_questions_also_where_nothing_answers_them():
    for records in ([record("spec", {"en": 9.0})], [record("std_steps", {}, "tuning")]):
        found = tables(arranged(records))
        assert [table.title for table in found[:3]] == [HELP, COST, SET]
        assert all("No run that answers this has finished" in t.caption for t in found[:1])
        shown = page.html(found, [])
        places = [shown.index(f">{question}</h2>") for question in QUESTIONS]
        assert places == sorted(places) and places[-1] < shown.index(">Overview</h2>")
        assert document(found).index("## Does it help me?") < document(found).index("## Overview")


def of_pairs(*gains, seeds=(17, 17, 18, 18)):
    """STD at 100 on each run, SPEC better by so many percent."""
    draws = [0, 1, 0, 1]
    return [
        record(method, {"en": 100.0 - (gain if method == "spec" else 0)}, seed=seed, draw=draw)
        for gain, seed, draw in zip(gains, seeds, draws, strict=False)
        for method in ("std_steps", "spec")
    ]


@pytest.mark.parametrize(
    ("gains", "answer"),
    [
        ((12, 10, 11, 9), "yes (4 pairs, 2 seeds)"),
        ((-12, -10, -11, -9), "no (4 pairs, 2 seeds)"),
        ((12, -10, 5, -9), "not clear (4 pairs, 2 seeds)"),
        ((12, 11), "yes (2 pairs, 1 seed)"),
        ((12,), "one pair"),
    ],
)
def test_it_helps_if_it_is_better_by_two_standard_errors(gains, answer):
    ((*_, improvement, found),) = rows_of(of_pairs(*gains), HELP)
    assert found == answer
    assert improvement == f"{sum(gains) / len(gains):+.1f} %"


def test_methods_without_a_common_run_have_no_answer():
    records = [record("std_steps", {"en": 9.0}, seed=17), record("spec", {"en": 8.0}, seed=18)]
    ((*_, found),) = rows_of(records, HELP)
    assert found == "no pairs"


def test_costs_are_those_of_the_runs_and_bodies_of_one_source_are_added_up():
    sent = {"parameters_per_step": 25.0, "reduction": 40.0}
    records = [
        record("std_tau0", {"en": 9.0}, "pretrain", tokens=8_000_000),
        record("spec", {"en": 8.0}, "pretrain", communication=sent, tokens=8_000_000),
        *(
            record("isolated", {s: 9.0}, "pretrain", source=s, tokens=1_000_000, communication={})
            for s in ("en", "it")
        ),
    ]
    assert rows_of(records, COST) == [
        ["c", "STD τ=0", "30", "8.0", "100", "1", "1 seed"],
        ["c", "isolated", "30", "2.0", "", "", "1 seed"],
        ["c", "SPEC", "30", "8.0", "25", "40", "1 seed"],
    ]


def tried(stage, method, setting, bits, updates=None, **more):
    run = f"c-{stage}-{method}-{setting}-{more.get('seed', 17)}-{more.get('draw')}"
    entry = record(method, {}, stage, setting=setting, average={"bits_per_byte": bits}, **more)
    return entry | {"run": run, "updates": updates}


def test_what_to_set_is_the_best_of_what_was_tried():
    records = [
        tried("pilot", "spec", "500 x 2", 1.9),
        tried("pilot", "spec", "125 x 8", 1.7),
        tried("pilot", "spec", "32 x 32", math.inf),
        tried("pilot", "spec", "500 x 2, continued", 2.5, after="a", draw=0),
        tried("pilot", "spec", "125 x 8, continued", 2.75, after="b", draw=0),
        tried("pilot", "spec", "500 x 2, continued", 2.7, after="a", draw=1),
        tried("pilot", "glob", "125 x 8", 1.7),  # nothing to choose from
        *(
            record("glob", {}, "tuning", learning_rate=rate, average={"bits_per_byte": bits})
            for rate, bits in ((0.004, 2.1), (0.008, 2.0), (0.016, 2.2))
        ),
    ]
    what = "local steps, batch, rate"
    assert rows_of(records, SET) == [
        ["c", "learning rate", "GLOB", "0.008 2.000", "0.004 2.100", "3", "1 seed"],
        ["c", what, "SPEC", "125 x 8 1.700", "500 x 2 1.900", "2", "1 seed"],
        [
            *("c", f"{what}, continued", "SPEC"),
            *("500 x 2, continued 2.600 ± 0.141", "125 x 8, continued 2.750", "2"),
            "1 seed x 2 draws",
        ],
    ]


def test_the_pilot_shows_how_far_updates_agree():
    agree = {"cosine": [0.04, 0.02, 0.0, 0.0, -0.02, -0.04], "norm_of_mean": [0.5, 0.4, 0.3] * 2}
    records = [
        tried("pilot", "spec", "125 x 8", 1.7, agree),
        tried("pilot", "std_steps", "125 x 8, STD", 1.8),
    ]
    (table,) = titled(records, "c, pilot").values()
    assert [name for name, _ in table.head][-4:] == [
        *("cosine, early", "late", "norm of mean", "runs")
    ]
    shown = cells(table)
    assert shown["125 x 8"][-4:] == ["0.030", "-0.030", "0.400", "1 seed"]
    assert shown["125 x 8, STD"][-4:] == ["", "", "", "1 seed"]


def test_first_embeddings_are_shown_at_shares_of_the_steps():
    def curve(*points):
        return {"steps": [0, 25, 75, 225], "average": {"bits_per_byte": list(points)}}

    def of(name, curves, bits, *sources):
        more = {"curves": curves, "rounds": 1, "local_steps": 225, "after": "a"}
        entry = tried("embeddings", "spec", name, bits, **more)
        return entry | {"sources": {source: evaluated(9.0) for source in sources}}

    both = (("mean", (3.0, 2.5, 2.0, 1.5)), ("sparse", (2.9, 2.6, 2.1, 1.4)))
    records = [of(name, curve(*points), points[-1], "en", "it") for name, points in both]
    few = {"steps": [0, 60, 225], "average": {"bits_per_byte": [2.0, 1.9, 1.8]}}
    records.append(of("rarely", few, 1.8, "en", "it"))
    records += [of(f"new, {name}", curve(*points), points[-1], "de") for name, points in both]
    table, new = titled(records, "c, first embeddings").values()
    assert [t.title for t in (table, new)] == [
        "c, first embeddings, 2 sources",
        "c, first embeddings, de",
    ]
    assert bold(new) == {("new, sparse", 1), ("new, mean", 2), ("new, mean", 3), ("new, sparse", 4)}
    chosen = [row[1:5] for row in rows_of(records, SET)]
    assert chosen == [
        ["first embedding, 2 sources", "SPEC", "sparse 1.400", "mean 1.500"],
        ["first embedding, de", "SPEC", "new, sparse 1.400", "new, mean 1.500"],
    ]
    assert cells(table) == {
        "mean": ["SPEC", "3.000", "2.500", "2.000", "1.500", "1 seed"],
        "sparse": ["SPEC", "2.900", "2.600", "2.100", "1.400", "1 seed"],
        "rarely": ["SPEC", "2.000", "", "", "1.800", "1 seed"],
    }


def test_a_plan_that_was_stopped_shows_what_it_has_and_of_how_many_runs():
    """Some methods with one seed, some draws missing, bodies of four of eight sources."""
    names = ("en", "ja", "ru", "hi", "it")
    full = dict.fromkeys(names, 90.0)
    records = [
        *(record("std_steps", full, seed=17, draw=draw) for draw in (0, 1, 2)),
        *(record("spec", full, seed=seed, draw=0) for seed in (17, 18)),
        record("spec", full, seed=17, draw=1),
        *(record("isolated", {s: 70.0}, "pretrain", source=s) for s in names[:4]),
        record("spec", full, "pretrain"),
    ]
    found = {table.title: table for table in tables(arranged(records))}
    continued = found["c, CPT, random, 30 steps, perplexity, sources, at equal steps and batch"]
    assert cells(continued)["SPEC"][-1] == "3 of 2 seeds x 2 draws"
    assert cells(continued)["STD τ=0 (steps)"][-1] == "1 seed x 3 draws"
    own = found["c, pre-training, bits per byte, sources"]
    assert cells(own)["isolated"] == [*["4.248"] * 4, "", "", "1 seed"]
