"""The mathematics of a comparison of methods, its tables and lines, on hand-made records."""

import math

import numpy as np
import pytest
from run_record import fine_tuned, record

from eval import plan
from eval.report import curves, names
from eval.report.compare import AVERAGE, compare, improvements, won
from eval.report.comparison_tables import comparison_tables
from eval.report.run_records import arranged
from eval.report.table import markdown
from eval.report.tables import tables
from eval.reproduce import PLAN


def cells(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def bold(table):
    return {(row[0].text, place) for row in table.rows for place, c in enumerate(row[1:]) if c.best}


TWO_SEEDS = [
    record("std_tau0", {"en": 100.0, "it": 50.0}, seed=17),
    record("std_tau0", {"en": 110.0, "it": 50.0}, seed=18),
    record("std_tau1", {"en": 120.0, "it": 40.0}, seed=17),
    record("spec", {"en": 84.0, "it": 44.0}, seed=17),
    record("spec", {"en": 84.0, "it": 44.0}, seed=18),
]


def test_a_column_is_the_mean_over_seeds_with_half_their_range():
    table = comparison_tables(compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources"))[0]
    assert cells(table) == {
        "STD τ=0": ["105.0 ± 5.0", "50.0 ± 0.0", "77.5 ± 2.5", "2"],
        "STD τ=1": ["120.0", "40.0", "80.0", "1"],
        "SPEC": ["84.0 ± 0.0", "44.0 ± 0.0", "64.0 ± 0.0", "2"],
    }
    assert bold(table) == {("SPEC", 0), ("STD τ=1", 1), ("SPEC", 2)}


def test_improvement_is_over_the_best_baseline_of_each_column():
    comparison = compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources")
    found = improvements(comparison)
    assert found.keys() == {"spec"}
    # en: against STD tau 0's 105; it: against STD tau 1's 40
    assert found["spec"].by_source == pytest.approx({"en": 20.0, "it": -10.0})
    assert found["spec"].average == pytest.approx(5.0)
    table = comparison_tables(comparison)[1]
    assert cells(table) == {"SPEC": ["+5.0 %", "-10.0 % (it)", "+20.0 % (en)", "1 of 2"]}
    assert comparison.best_baseline(AVERAGE)[0] == "std_tau0"


def test_columns_won_by_every_seed_need_several_seeds():
    comparison = compare(arranged(TWO_SEEDS), "c", "cpt_random", "sources")
    assert won(comparison) == (1, 2, None)
    both = [*TWO_SEEDS, record("std_tau1", {"en": 83.0, "it": 40.0}, seed=18)]
    comparison = compare(arranged(both), "c", "cpt_random", "sources")
    assert won(comparison) == (1, 2, 0), "a seed of STD tau 1 is below SPEC in en"


def test_the_layout_is_the_papers_baselines_first_and_sources_headed_by_their_unigram():
    records = [
        record("spec", {"en": 84.0, "it": 44.0}, held_out={"el": 900.0}),
        record("std_tau1", {"en": 120.0, "it": 40.0}, held_out={"el": 1000.0}),
    ]
    main, _, held_out, _ = [t for t in tables(arranged(records)) if t.topic == "cpt_random"]
    assert [row[0].text for row in main.rows] == ["STD τ=1", "SPEC"] and main.parts == (1,)
    assert markdown(main).splitlines()[2:7] == [
        "| method | en (unigram CE 6.00) | it (unigram CE 6.00) | average | seeds |",
        "|---|---:|---:|---:|---:|",
        "| STD τ=1 | 120.0 | **40.0** | 80.0 | 1 |",
        "| SPEC | **84.0** | 44.0 | **64.0** | 1 |",
        "",
    ]
    assert [name for name, _ in held_out.head] == ["method", "el", "average", "seeds"]
    assert cells(held_out)["SPEC"][0] == "900.0"


def test_baselines_at_equal_steps_and_at_equal_tokens_are_compared_apart():
    records = [
        record("std_tau0", {"en": 80.0}),
        record("std_steps", {"en": 200.0}),
        record("isolated", {"en": 150.0}, source="en"),
        record("spec", {"en": 100.0}),
    ]
    by_title = {table.title: table for table in tables(arranged(records))}
    steps = by_title["c, CPT, random, perplexity, sources, at equal steps and batch"]
    assert [row[0].text for row in steps.rows] == ["STD τ=0 (steps)", "isolated", "SPEC"]
    tokens = by_title["c, CPT, random, perplexity, sources, at equal tokens"]
    assert [row[0].text for row in tokens.rows] == ["STD τ=0", "isolated", "SPEC"]
    gains = {k: cells(t)["SPEC"][0] for k, t in by_title.items() if "improvement over" in k}
    assert sorted(gains.values()) == ["+33.3 %", "-25.0 %"]


def test_a_figure_that_is_missing_is_blank_and_makes_no_average():
    records = [
        *TWO_SEEDS,
        record("glob", {"en": 90.0}, seed=17),
        record("trim", {"en": 90.0, "it": 30.0}, seed=17),
        record("trim", {"en": 92.0}, seed=18),
    ]
    comparison = compare(arranged(records), "c", "cpt_random", "sources")
    main, improved = map(cells, comparison_tables(comparison))
    assert main["GLOB"] == ["90.0", "", "", "1"]
    assert main["TRIM"] == ["91.0 ± 1.0", "30.0 (1)", "60.0 (1)", "2"]
    assert improved["GLOB"] == ["+14.3 %", "+14.3 % (en)", "+14.3 % (en)", "1 of 1"]


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
    assert cells(main)["ACT"] == ["diverged (1 of 2)", "70.0 ± 0.0", "diverged (1 of 2)", "2"]
    assert cells(main)["SPEC"][0] == "diverged"
    assert bold(main) == {("STD τ=0", 0), ("SPEC", 1), ("STD τ=0", 2)}
    assert "Diverged" in main.caption
    assert cells(improved)["SPEC"] == ["diverged", "diverged (en)", "+10.0 % (it)", "1 of 2"]
    assert won(comparison)[:2] == (1, 2)


def test_bodies_of_one_source_each_are_averaged_after_cpt_and_stand_for_their_own_before():
    after = [
        record("isolated", {"en": 100.0, "it": 60.0}, source="en"),
        record("isolated", {"en": 200.0, "it": 40.0}, source="it"),
    ]
    main = comparison_tables(compare(arranged(after), "c", "cpt_random", "sources"))[0]
    assert cells(main) == {"isolated": ["150.0", "50.0", "100.0", "1"]}
    assert "2 of a seed" in main.caption

    before = [
        record("isolated", {"en": math.e**3}, "pretrain", source="en"),
        record("isolated", {"it": math.e**4, "en": math.e**9}, "pretrain", source="it"),
        record("std_tau0", {"en": math.e**5, "it": math.e**5}, "pretrain"),
    ]
    main = comparison_tables(compare(arranged(before), "c", "pretrain", "sources"))[0]
    assert cells(main)["isolated"] == ["3.000", "4.000", "3.500", "1"]


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
        ([good | {"method": "spek"}], "'spek' is none of"),
        ([good | {"stage": "cpt"}], "'cpt' is none of"),
        ([good, good | {"run": "o", "seed": 18, "baseline": True}], "a baseline in one run"),
    ]
    for records, message in refused:
        with pytest.raises(ValueError, match=message):
            arranged(records)


def test_every_stage_and_method_of_the_plan_can_be_shown():
    assert set(names.STAGES) == set(plan.STAGES)
    planned = plan.read_plan(PLAN)
    assert names.METHODS.keys() >= planned.methods.keys()
    dashed = {name for name, look in names.METHODS.items() if look.dash != "-"}
    assert dashed == {name for name, method in planned.methods.items() if method.baseline}


def test_tuning_shows_the_best_rate_of_each_method():
    runs = [(0.004, 2.1), (0.008, 2.0), (0.016, math.inf)]
    records = [
        record("spec", {}, "tuning", learning_rate=rate, average={"bits_per_byte": bits})
        for rate, bits in runs
    ]
    records.append(record("glob", {}, "tuning", learning_rate=0.004))
    (table,) = [t for t in tables(arranged(records)) if t.topic == "tuning"]
    assert [name for name, _ in table.head] == ["method", "0.004", "0.008", "0.016"]
    assert cells(table) == {"GLOB": ["2.000", "", ""], "SPEC": ["2.100", "2.000", "diverged"]}
    assert bold(table) == {("GLOB", 0), ("SPEC", 1)}


def test_studies_are_told_by_their_setting():
    records = [
        record("spec", {}, "study", seed, setting="momentum", average={"bits_per_byte": bits})
        for seed, bits in ((17, 2.0), (18, 2.5))
    ]
    for entry in records:
        entry["run"] += "-momentum"
    (table,) = [t for t in tables(arranged(records)) if t.topic == "study"]
    assert cells(table) == {"momentum": ["SPEC", "0.008", "30", "", "2.250 ± 0.250"]}


def test_communication_tells_what_a_source_hands_over():
    sent = {"parameters_per_step": 25.0, "reduction": 40.0, "sent_bytes": 2e6}
    records = [
        record("std_tau0", {"en": 9.0}, "pretrain", communication={"parameters_per_step": 1000}),
        record("spec", {"en": 8.0}, "pretrain", local_steps=10_000, communication=sent),
        record("isolated", {"en": 9.0}, "pretrain", source="en", communication=sent),
    ]
    (table,) = [t for t in tables(arranged(records)) if t.topic == "communication"]
    assert cells(table) == {
        "STD τ=0": ["1,000", "1 times", "0.1 MB", "", ""],
        "isolated": ["0", "", "0.0 MB", "", ""],
        "SPEC": ["25", "40 times", "3.0 MB", "2.0 MB", ""],
    }


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
    ]
    assert cells(table) == {
        "most frequent class": ["0.500", ""],
        "bag of words": ["0.800", ""],
        "no pre-training": ["0.600", ""],
        "STD τ=0": ["0.720 ± 0.020", "-0.200"],
        "GLOB": ["", "diverged"],
        "SPEC": ["0.780", "0.410"],
    }
    assert bold(table) == {("SPEC", 0), ("SPEC", 1)} and table.parts == (3, 4)
