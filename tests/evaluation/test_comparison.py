"""The mathematics of a comparison of methods and its tables, on hand-made records."""

import math

import numpy as np
import pytest
from run_record import bold, by_title, cells, record

from dept.evaluation.report import names
from dept.evaluation.report.compare import AVERAGE, compare, improvements, won
from dept.evaluation.report.comparison_tables import comparison_tables, comparisons
from dept.evaluation.report.overview import overview
from dept.evaluation.report.run_records import arranged
from dept.evaluation.report.table import markdown
from dept.evaluation.report.tables import tables
from dept.evaluation.reproduce.plan import PLAN, read_plan

TWO_SEEDS = [
    record("std_tau0", {"en": 100.0, "it": 50.0}, seed=17),
    record("std_tau0", {"en": 110.0, "it": 50.0}, seed=18),
    record("std_tau1", {"en": 120.0, "it": 40.0}, seed=17),
    record("spec", {"en": 84.0, "it": 44.0}, seed=17),
    record("spec", {"en": 84.0, "it": 44.0}, seed=18),
]


# Two seeds of the body by three random embeddings, as perplexities of en and it.
DRAWN = {
    "std_steps": [(200., 60.), (230., 55.), (215., 65.), (180., 70.), (260., 50.), (190., 62.)],
    "glob": [(190., 58.), (210., 56.), (209., 59.), (181., 60.), (222., 52.), (186., 61.)],
    "spec": [(400., 90.), (420., 91.), (415., 92.), (395., 93.), (430., 94.), (405., 95.)],
}  # fmt: skip


def drawn(stage="cpt_random", methods=DRAWN, **more):
    places = [(seed, draw) for seed in (17, 18) for draw in (0, 1, 2)]
    return [
        record(method, {"en": en, "it": it}, stage, seed, draw=draw, **more)
        for method in methods
        for (seed, draw), (en, it) in zip(places, DRAWN[method], strict=True)
    ]


def test_a_column_is_the_mean_over_runs_with_their_sample_standard_deviation():
    table = comparison_tables(compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources"))[0]
    # of two runs it is their difference over the root of two: 10 / 1.414
    assert cells(table) == {
        "STD τ=0": ["105.0 ± 7.1", "50.0 ± 0.0", "77.5 ± 3.5", "2 seeds"],
        "STD τ=1": ["120.0", "40.0", "80.0", "1 seed"],
        "SPEC": ["84.0 ± 0.0", "44.0 ± 0.0", "64.0 ± 0.0", "2 seeds"],
    }
    assert bold(table) == {("SPEC", 0), ("STD τ=1", 1), ("SPEC", 2)}
    assert "sample standard deviation (n - 1)" in table.caption


def test_runs_are_draws_by_seeds():
    table = comparison_tables(compare(arranged(drawn()), "c", "cpt_random", "sources"))[0]
    for method, label in (("std_steps", "STD τ=0 (steps)"), ("glob", "GLOB"), ("spec", "SPEC")):
        values = np.array(DRAWN[method])
        values = np.column_stack([values, values.mean(axis=1)])
        mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
        shown = [f"{m:.1f} ± {d:.1f}" for m, d in zip(mean, deviation, strict=True)]
        assert cells(table)[label] == [*shown, "2 seeds x 3 draws"]
    assert cells(table)["STD τ=0 (steps)"][0] == "212.5 ± 29.3"
    assert "a draw is a random embedding" in table.caption
    fewer = drawn()[:-2]
    fewer[0]["sources"].pop("en")
    table = comparison_tables(compare(arranged(fewer), "c", "cpt_random", "sources"))[0]
    assert cells(table)["STD τ=0 (steps)"][0] == "215.0 ± 32.0 (5)"
    assert cells(table)["SPEC"][-1] == "4 of 2 seeds x 3 draws"


def shown_of(values):
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_the_overview_pairs_the_best_two_by_seed_and_draw():
    (table,) = overview(comparisons(arranged(drawn())))
    baseline, ours = (np.array(DRAWN[method]).mean(axis=1) for method in ("std_steps", "glob"))
    gains = 100 * (1 - ours / baseline)
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(6)
    (row,) = table.rows
    shown = dict(zip([name for name, _ in table.head], [cell.text for cell in row], strict=True))
    assert shown == {
        "corpus": "c",
        "stage": "CPT, random, 30 steps",
        "baselines": "at equal steps and batch",
        "text": "sources",
        "metric": "perplexity",
        "best baseline": f"STD τ=0 (steps) {shown_of(baseline)} (2 seeds x 3 draws)",
        "best DEPT": f"GLOB {shown_of(ours)} (2 seeds x 3 draws)",
        "improvement": f"{100 * (1 - ours.mean() / baseline.mean()):+.1f} %",
        "in pairs": f"{mean:+.1f} ± {error:.1f} % (6)",
        "columns won": "2 of 2",
        "by every run": "0 of 2",
    }
    assert shown["improvement"] == "+5.7 %" and shown["in pairs"] == "+5.5 ± 1.4 % (6)"


def test_pairs_are_runs_that_both_have_and_one_is_none():
    pairs = {}
    for draws in ((0, 1, 2), (1, 2), (2,), (7, 8)):
        runs = [
            *(r for r in drawn(methods=["std_steps"]) if r["seed"] == 17),
            *(record("glob", {"en": 190.0, "it": 58.0}, draw=draw) for draw in draws),
        ]
        (row,) = overview(comparisons(arranged(runs)))[0].rows
        pairs[draws] = row[8].text
    both = 100 * (1 - 124.0 / np.array([142.5, 140.0]))
    error = both.std(ddof=1) / np.sqrt(2)
    assert pairs[1, 2] == f"{both.mean():+.1f} ± {error:.1f} % (2)"
    assert pairs[0, 1, 2].endswith("% (3)")
    assert pairs[2,] == pairs[7, 8] == ""


def test_stages_of_equal_name_are_titled_by_the_steps_of_their_runs():
    runs = drawn() + drawn("cpt_random_long", local_steps=40)
    short, long = (
        t
        for t in tables(arranged(runs))
        if t.title.endswith("improvement over the best baseline of each column")
    )
    assert short.title.startswith("c, CPT, random, 30 steps, perplexity, sources, at equal steps")
    assert long.title.startswith("c, CPT, random, 120 steps, perplexity, sources, at equal steps")
    assert (short.topic, long.topic) == ("cpt_random", "cpt_random_long")


def test_improvement_is_over_the_best_baseline_of_each_column():
    comparison = compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources")
    found = improvements(comparison)
    assert list(found.index) == ["spec"]
    # en: against STD tau 0's 105; it: against STD tau 1's 40
    assert found.loc["spec"].to_dict() == pytest.approx({"en": 20.0, "it": -10.0})
    table = comparison_tables(comparison)[1]
    assert cells(table) == {"SPEC": ["+5.0 %", "-10.0 % (it)", "+20.0 % (en)", "1 of 2", "2 seeds"]}
    assert comparison.best(AVERAGE, baseline=True)[0] == "std_tau0"


def test_columns_won_by_every_run_need_several_runs():
    comparison = compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources")
    assert won(comparison) == (1, 2, None)
    both = [*TWO_SEEDS, record("std_tau1", {"en": 83.0, "it": 40.0}, seed=18)]
    comparison = compare(arranged(both), "c", "cpt_random", "sources")
    assert won(comparison) == (1, 2, 0), "a run of STD tau 1 is below SPEC in en"


def test_the_layout_is_the_papers_baselines_first_and_sources_headed_by_their_unigram():
    records = [
        record("spec", {"en": 84.0, "it": 44.0}, held_out={"el": 900.0}),
        record("std_tau1", {"en": 120.0, "it": 40.0}, held_out={"el": 1000.0}),
    ]
    main, _, held_out, _ = [t for t in tables(arranged(records)) if t.topic == "cpt_random"]
    assert [row[0].text for row in main.rows] == ["STD τ=1", "SPEC"] and main.parts == (1,)
    assert markdown(main).splitlines()[2:7] == [
        "| method | en (unigram CE 6.00) | it (unigram CE 6.00) | average | runs |",
        "|---|---:|---:|---:|---:|",
        "| STD τ=1 | 120.0 | **40.0** | 80.0 | 1 seed |",
        "| SPEC | **84.0** | 44.0 | **64.0** | 1 seed |",
        "",
    ]
    assert [name for name, _ in held_out.head] == ["method", "el", "average", "runs"]
    assert cells(held_out)["SPEC"][0] == "900.0"


def test_baselines_at_equal_steps_and_at_equal_tokens_are_compared_apart():
    records = [
        record("std_tau0", {"en": 80.0}),
        record("std_steps", {"en": 200.0}),
        record("isolated", {"en": 150.0}, source="en"),
        record("spec", {"en": 100.0}),
    ]
    found = by_title(tables(arranged(records)))
    steps = found["c, CPT, random, 30 steps, perplexity, sources, at equal steps and batch"]
    assert [row[0].text for row in steps.rows] == ["STD τ=0 (steps)", "isolated", "SPEC"]
    tokens = found["c, CPT, random, 30 steps, perplexity, sources, at equal tokens"]
    assert [row[0].text for row in tokens.rows] == ["STD τ=0", "isolated", "SPEC"]
    gains = {k: cells(t)["SPEC"][0] for k, t in found.items() if "improvement over" in k}
    assert sorted(gains.values()) == ["+33.3 %", "-25.0 %"]


def test_a_value_that_is_missing_is_blank_and_makes_no_average():
    records = [
        *TWO_SEEDS,
        record("glob", {"en": 90.0}, seed=17),
        record("trim", {"en": 90.0, "it": 30.0}, seed=17),
        record("trim", {"en": 92.0}, seed=18),
    ]
    comparison = compare(arranged(records), "c", "cpt_random", "sources")
    main, improved = map(cells, comparison_tables(comparison))
    assert main["GLOB"] == ["90.0", "", "", "1 seed"]
    assert main["TRIM"] == ["91.0 ± 1.4", "30.0 (1)", "60.0 (1)", "2 seeds"]
    assert improved["GLOB"] == ["+14.3 %", "+14.3 % (en)", "+14.3 % (en)", "1 of 1", "1 seed"]


def test_a_method_that_diverged_says_so_and_is_never_the_best():
    records = [
        record("act", {"en": 100.0, "it": 70.0}, seed=17),
        record("act", {"en": 1.5, "it": 70.0}, seed=18),
        record("std_tau0", {"en": 90.0, "it": 80.0}),
        record("spec", {"en": 99.0, "it": 63.0}),
    ]
    records[0]["sources"]["en"]["eval"]["perplexity"] = "inf"  # as JSON has it
    records[3]["sources"]["en"]["eval"]["perplexity"] = math.nan
    comparison = compare(arranged(records), "c", "cpt_random", "sources")
    main, improved = comparison_tables(comparison)
    assert cells(main)["ACT"] == ["diverged (1 of 2)", "70.0 ± 0.0", "diverged (1 of 2)", "2 seeds"]
    assert cells(main)["SPEC"][0] == "diverged"
    assert bold(main) == {("STD τ=0", 0), ("SPEC", 1), ("STD τ=0", 2)}
    assert "Diverged" in main.caption
    assert cells(improved)["SPEC"] == [
        "diverged",
        "diverged (en)",
        "+10.0 % (it)",
        "1 of 2",
        "1 seed",
    ]
    assert won(comparison)[:2] == (1, 2)


def test_bodies_of_one_source_each_are_averaged_after_cpt_and_stand_for_their_own_before():
    after = [
        record("isolated", {"en": 100.0, "it": 60.0}, source="en"),
        record("isolated", {"en": 200.0, "it": 40.0}, source="it"),
    ]
    main = comparison_tables(compare(arranged(after), "c", "cpt_random", "sources"))[0]
    assert cells(main) == {"isolated": ["150.0", "50.0", "100.0", "1 seed"]}
    assert "2 of a run" in main.caption

    before = [
        record("isolated", {"en": math.e**3}, "pretrain", source="en"),
        record("isolated", {"it": math.e**4, "en": math.e**9}, "pretrain", source="it"),
        record("std_tau0", {"en": math.e**5, "it": math.e**5}, "pretrain"),
    ]
    main = comparison_tables(compare(arranged(before), "c", "pretrain", "sources"))[0]
    assert cells(main)["isolated"] == ["3.000", "4.000", "3.500", "1 seed"]


def test_bits_per_byte_are_headed_by_the_unigram_in_the_same_unit():
    spec_opt = record("spec_opt", {"en": 50.0}, "pretrain")
    spec_opt["sources"]["en"]["eval"]["unigram_ce"] = 9.0  # of another tokenizer
    std = record("std_tau0", {"en": math.e**4}, "pretrain")
    std["sources"]["en"]["eval"]["bits_per_byte"] = 2.0
    comparison = compare(arranged([spec_opt, std]), "c", "pretrain", "sources")
    assert comparison.unigram == pytest.approx({"en": 6.0 * 2.0 / 4.0})


def test_what_would_be_shown_wrongly_is_refused():
    good = record("spec", {"en": 1.0})
    refused = [
        ([good, good], "there twice"),
        ([good, good | {"run": "other"}], "the same place"),
        ([good | {"draw": 1}, good | {"run": "other", "draw": 1}], "the same place"),
        ([good, good | {"run": "other", "draw": 1}], "but only one of them has a draw"),
        ([good | {"stage": "tuning_cpt", "setting": "half"}], "'half' of tuning_cpt begins with"),
        ([good | {"method": "spek"}], "'spek' is none of"),
        ([good | {"stage": "cpt"}], "'cpt' is none of"),
        ([good, good | {"run": "o", "seed": 18, "baseline": True}], "a baseline in one run"),
    ]
    for records, message in refused:
        with pytest.raises(ValueError, match=message):
            arranged(records)
    draws = [good | {"run": f"d{draw}", "draw": draw} for draw in (10, 9)]
    assert list(arranged(draws)["draw"]) == [9, 10]


def test_every_method_of_the_plan_can_be_shown():
    planned = read_plan(PLAN)
    assert names.METHODS.keys() >= planned.methods.keys()
    dashed = {name for name in planned.methods if names.METHODS[name].dash != "-"}
    assert dashed == {name for name, method in planned.methods.items() if method.baseline}
