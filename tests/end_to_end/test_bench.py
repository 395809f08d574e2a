"""`make bench` with the least work: every row leaves a record and lines of the table."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import REPOSITORY

pytestmark = pytest.mark.end_to_end

BENCH = [sys.executable, str(REPOSITORY / "bench" / "run.py")]


def bench(*arguments: str) -> str:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([*BENCH, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_row_leaves_a_record_and_lines_of_the_table(prepared, tmp_path):
    listed = bench("--list")
    assert listed == bench("--row", "list")
    rows = [line.split()[0] for line in listed.splitlines()]
    assert len(rows) == len(set(rows)) > 10
    given = ["--small", "--mb", "0.5", "--root", str(prepared), "--corpus", "tiny"]
    shown = bench(*given, "--out", str(tmp_path))
    assert {path.stem for path in tmp_path.iterdir()} == set(rows)
    assert max(map(len, shown.splitlines())) <= 80
    for name in rows:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["row"] == name and content["small"] is True and content["results"]
        for line in content["results"]:
            assert line["values"] and all(math.isfinite(value) for value in line["values"])
            assert line["least"] <= line["median"] <= line["greatest"]
        assert f" {name} " in shown
        if name == "memory":  # bytes do not depend on the machine
            assert all(line["is_reached"] for line in content["results"]), content["results"]
    assert not Path(REPOSITORY, "runs", "tmp-bench").exists()


def test_an_unknown_row_is_refused(tmp_path):
    done = subprocess.run([*BENCH, "--row", "speed"], capture_output=True, text=True)
    assert done.returncode == 2 and "no row speed" in done.stderr
