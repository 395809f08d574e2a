"""The report of domain times language: groups of cells, means over them, and the heat map."""

import pandas as pd
import pytest
from run_record import cells, record
from training import REPOSITORY

from dept.config import extends
from dept.data_prep.corpus_yaml import load_corpus
from dept.evaluation.report import domains_and_languages as made
from dept.evaluation.report.plots import plots
from dept.evaluation.report.run_records import arranged
from dept.evaluation.report.tables import tables
from dept.evaluation.reproduce.jobs import jobs
from dept.evaluation.reproduce.plan import read_plan

CORPORA = REPOSITORY / "data_prep" / "corpora"
SEEN = ["man.en", "man.fr", "bible.en", "game.fr"]
HELD_OUT = ["bible.fr", "game.de", "man.de", "admin.en", "admin.de"]


def run(method, corpus, seen, held_out, **more):
    own = {name: float(2 + seen + place) for place, name in enumerate(SEEN)}
    others = {name: float(2 + held_out + place) for place, name in enumerate(HELD_OUT)}
    found = record(method, own, held_out=others, corpus=corpus, **more)
    for kind, of in (("sources", own), ("held_out", others)):
        for name, value in of.items():
            found[kind][name]["eval"]["bits_per_byte"] = value
    return found | {"run": f"{corpus}-{found['run']}"}


@pytest.fixture(scope="module")
def records():
    found = [run("std_steps", "cells", 1.0, 5.0, draw=draw) for draw in (0, 1)]
    found += [run("spec", "cells", 0.0, 6.0, draw=draw) for draw in (0, 1)]
    found.append(run("spec", "by_language", 0.5, 2.0, draw=0))
    found.append(record("spec", {"en": 3.0, "fr": 4.0}, corpus="other", run="other"))
    found.append(record("spec", {"man.en": 3.0, "man.fr": 4.0}, corpus="one", run="one"))
    return arranged(found)


def test_held_out_cells_are_grouped_by_what_was_seen_of_them():
    assert made.groups(SEEN, HELD_OUT) == {
        "seen cells": SEEN,
        "held-out cells": ["bible.fr"],
        "held-out languages": ["game.de", "man.de"],
        "held-out domains": ["admin.en"],
        "both held out": ["admin.de"],
    }
    assert made.groups(SEEN, []) == {"seen cells": SEEN}


def test_means_are_of_the_cells_of_each_group(records):
    [table] = made.domains_and_languages(records)
    assert [name for name, _ in table.head][2:] == [*made.groups(SEEN, HELD_OUT), "runs"]
    assert table.head[2][1] == "4 cells" and table.head[3][1] == "1 cell"
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    assert set(rows) == {
        ("cells", "STD τ=0 (steps)"),
        ("cells", "SPEC"),
        ("by_language", "SPEC"),
    }  # neither the corpus of languages nor that of one domain
    expected = ["3.500 ± 0.000", "8.000 ± 0.000", "9.500 ± 0.000", "11.000 ± 0.000"]
    assert rows["cells", "SPEC"][:4] == expected and rows["cells", "SPEC"][-1] == "1 seed x 2 draws"
    assert rows["by_language", "SPEC"][:2] == ["4.000", "4.000"]
    best = {(row[0].text, place) for row in table.rows for place, c in enumerate(row[2:]) if c.best}
    assert best == {("cells", 0), *(("by_language", place) for place in range(1, 5))}
    assert table in tables(records) and cells(table)


def test_the_heat_map_has_a_row_for_each_cell(records):
    means = made.of_each_cell(records)
    assert list(means.index) == [*SEEN, *HELD_OUT]
    assert means.loc["bible.fr"].to_dict() == {
        "STD τ=0 (steps), cells": 7.0,
        "SPEC, cells": 8.0,
        "SPEC, by_language": 4.0,
    }
    assert [
        p for p in plots(records) if p.name == "domains-and-languages" and p.png[:4] == b"\x89PNG"
    ]


def test_without_cells_there_is_no_table():
    other = arranged([record("spec", {"en": 3.0})])
    assert made.domains_and_languages(other) == [] and made.of_each_cell(other) is None
    assert isinstance(made.on_cells(other), pd.DataFrame)


def test_the_plan_divides_one_text_at_equal_steps_and_tokens():
    plan = read_plan(REPOSITORY / "eval" / "domains_by_language.yaml")
    corpora = {name: load_corpus(CORPORA / f"{name}.yaml") for name in plan.corpora}
    named = {name: [s.name for s in corpus.sources] for name, corpus in corpora.items()}
    planned = jobs(plan, named)
    configs = {
        job.name: extends.resolve(extends.load(REPOSITORY / job.yaml, job.overrides))
        for job in planned
    }
    sequences = {}
    for job in planned:
        config = configs[job.name]
        if job.stage == "downstream":
            continue
        if job.stage == "cpt_random":
            assert config["train_loader"]["corpus"] == "domains_by_language"
            assert config["tokenizer"]["name"] == "tokenizers/domains_by_language/global"
            continue
        assert (config["max_duration"], config["variables"]["local_steps"]) == ("10ep", 125)
        drawn = 1
        if not job.baseline:
            drawn = config["algorithms"]["dept"].get("sources_per_round") or len(named[job.corpus])
        sequences[job.corpus, job.method] = drawn * config["global_train_batch_size"]
    assert sequences.pop(("domains_by_language", "std_steps")) == 4
    assert sequences.pop(("cells_by_language", "std_steps")) == 4
    tuned = {job.method: configs[job.name] for job in planned if job.stage == "downstream"}
    assert tuned.keys() == {"std_steps", "glob", "spec"} and tuned["spec"]["source"] == "en"
    for config in tuned.values():
        assert {"en", *config["data"]["transfer"]} < {*named["cells_by_language"]}
    assert set(sequences.values()) == {40} and len(sequences) == 7
    cells_of = set(named["domains_by_language"])
    for name in ("cells_by_language", "cells_by_domain"):
        files = [path for source in corpora[name].sources for path in source.files]
        folders = [path.removeprefix("data/domains_by_language/").split("/") for path in files]
        assert sorted(folder[0] for folder in folders) == sorted(cells_of)
        assert {folder[2] for folder in folders} == {"train"}
        for source in corpora[name].sources:
            assert all(source.name in path.split("/")[2].split(".") for path in source.files)
