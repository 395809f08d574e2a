"""Studies of compression and of inner state: their jobs, their tables, and bytes sent."""

import math

import pytest
import yaml
from run_record import cells, record
from training import REPOSITORY

from dept.evaluation.report.plots import plots
from dept.evaluation.report.run_records import arranged
from dept.evaluation.report.sent import bytes_exchanged
from dept.evaluation.report.tables import tables
from dept.evaluation.reproduce.jobs import jobs
from dept.evaluation.reproduce.plan import PLAN, read_plan
from dept.method.compression import Compression

PLAN_OF_STUDIES = REPOSITORY / "eval" / "compression.yaml"
SOURCES = {"multilingual": ("en", "it"), "multidomain": ("python",)}


def run(method, stage, setting, seed, bits, sent=1e6, draw=None, perplexity=50.0):
    made = record(method, {"en": 9.0}, stage, seed, draw=draw, setting=setting)
    sent = {"bytes_per_exchange": sent, "parameters_per_step": 1.0, "reduction": 7.0}
    if method == "std_tau0":
        sent["reduction"] = None
    average = {"bits_per_byte": bits, "perplexity": perplexity}
    made |= {"average": average, "communication": sent}
    made["run"] += f"-{setting}"
    return made


def records():
    """Two seeds of two methods; int4 is 1 and 3 percent above none, and its CPT 10 percent."""
    found = [run("std_tau0", "pretrain", None, 17, 2.5, 1e6)]
    for seed, worse in ((17, 1.01), (18, 1.03)):
        found += [
            run("spec_opt", "pretrain", None, seed, 2.0, 1e6),
            run("spec_opt", "compression", "int4", seed, 2.0 * worse, 125e3),
            run("spec_opt", "compression", "int4, no feedback", seed, 2.0 * worse, 125e3),
            run("spec_opt", "compression", "topk 1/1024", seed, math.inf, 1e3),
        ]
        for draw in (0, 1):
            value = 50.0 + draw + seed
            place = {"draw": draw}
            found += [
                run("spec_opt", "cpt_random", None, seed, 2.0, perplexity=value, **place),
                run(
                    "spec_opt",
                    "compression_cpt",
                    "int4",
                    seed,
                    2.0,
                    perplexity=1.1 * value,
                    **place,
                ),
            ]
    found.append(run("spec_opt", "inner_state", "reset", 17, 1.9, 1e6))
    return found


def test_a_study_shows_differences_from_the_method_itself_in_pairs():
    found = {
        t.topic: t for t in tables(arranged(records())) if t.topic in ("compression", "inner_state")
    }
    table = found["compression"]
    assert [row[1].text for row in table.rows] == [
        "none",
        "int4",
        "int4, no feedback",
        "topk 1/1024",
    ]
    none, int4, _, broken = ([cell.text for cell in row] for row in table.rows)
    assert none[:6] == ["SPEC-OPT", "none", "3.000 MB", "1.0", "2.000 ± 0.000", ""]
    assert none[6] == "2 seeds" and none[9] == "2 seeds x 2 draws"
    assert int4[2:6] == ["0.375 MB", "8.0", "2.040 ± 0.028", "+2.00 ± 1.41 % (2)"]
    assert int4[8] == "+10.00 ± 0.00 % (4)"
    assert broken[4:6] == ["diverged (2 of 2)", "diverged"] and broken[7:9] == ["", ""]
    assert cells(found["inner_state"])["SPEC-OPT"][4] == "-5.00 % (1)"  # the last row


def test_the_plot_of_bytes_and_the_bytes_of_every_method():
    arranged_records = arranged(records())
    sent = bytes_exchanged(arranged_records).groupby(arranged_records["method"]).max()
    assert sent["std_tau0"] == 1e6 * 30 and sent["spec_opt"] == 1e6 * 3  # steps, and rounds
    (plot,) = [plot for plot in plots(arranged_records) if plot.topic == "compression"]
    assert plot.png.startswith(b"\x89PNG") and "DDP" in plot.caption
    plain = [entry for entry in records() if entry["stage"] != "compression"]
    assert not [plot for plot in plots(arranged(plain)) if plot.topic == "compression"]


def test_the_plan_of_studies_shares_its_reference_with_the_comparison():
    """What is named alike is the same run, so that it is trained once."""
    main = {job.name: job for job in jobs(read_plan(PLAN), SOURCES)}
    plan = read_plan(PLAN_OF_STUDIES)
    found = jobs(plan, SOURCES)
    shared = [job for job in found if job.name in main]
    assert all(job == main[job.name] for job in shared)
    assert {(job.stage, job.method) for job in shared} == {
        (stage, method)
        for stage in ("pretrain", "cpt_random")
        for method in ("spec_opt", "glob", "std_tau0")
    }
    others = [job for job in found if job.name not in main]
    names = {job.name for job in found}
    assert len(names) == len(found) and {j.after for j in found if j.after} <= names
    for stage, settings in (("compression", 10), ("inner_state", 2)):
        trained = [job for job in others if job.stage == stage]
        continued = [job for job in others if job.stage == f"{stage}_cpt"]
        assert len(trained) == settings * 2 * 2 and len(continued) == 3 * len(trained)


def test_settings_of_the_plan_are_what_they_are_called():
    studies = yaml.safe_load(PLAN_OF_STUDIES.read_text())["studies"]
    numbers = 1 << 22
    fewer = {}
    for name, (override,) in studies["compression"]["settings"].items():
        key, value = override.split("=", 1)
        assert key == "algorithms.dept.compression"
        coding = Compression.of(yaml.safe_load(value))
        assert (coding.decay > 0) != name.endswith("no feedback")
        fewer[name] = 4 * numbers / coding.bytes_of(numbers, 0, 0)
    assert fewer["topk 146"] == pytest.approx(146, abs=0.5)
    assert fewer["int8"] == pytest.approx(4, rel=0.01)
    assert fewer["int4"] == pytest.approx(8, rel=0.01)
    # Not by 4 and 16, since the largest magnitude of a block takes four bytes at any density.
    assert fewer["topk 1/1024"] > 2 * fewer["topk 1/256"] > 6 * fewer["topk 146"]
