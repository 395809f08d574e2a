"""The report of a comparison: files that hold everything, and are the same each time."""

import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from run_record import everything

from dept.evaluation.report import writing

REPOSITORY = Path(__file__).parents[2]


def test_no_run_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="no run has finished"):
        writing.write([], tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    files = writing.write(everything(), tmp_path)
    assert files[-1] == tmp_path / "index.html"
    page = files[-1].read_text()
    text = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//|<link|<script|<iframe|url\(|@import", text)
    plots = sorted((tmp_path / "plots").glob("*.png"))
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == len(plots) == 14
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets and targets == set(re.findall(r'<h[23] id="([^"]+)"', page))
    assert "a&lt;b|c" in page and "a<b" not in page
    assert "a<b\\|c (unigram CE 6.00)" in (tmp_path / "tables.md").read_text()
    for path in plots:
        assert path.stat().st_size < 150_000
        assert not Image.open(BytesIO(path.read_bytes())).info.keys() & {"Software", "date:create"}


def test_the_same_records_give_the_same_bytes_in_any_order_without_torch(tmp_path):
    records = everything()
    writing.write(records, tmp_path / "one")
    two = tmp_path / "two"
    (two / "runs").mkdir(parents=True)
    for entry in reversed(records):
        (two / "runs" / f"{entry['run']}.json").write_text(json.dumps(entry))
    (two / "plots").mkdir()
    (two / "plots" / "of-a-method-no-longer-run.png").touch()
    command = (
        "import runpy, sys; runpy.run_module('dept.evaluation.report', run_name='__main__');"
        "assert not sys.modules.keys() & {'torch', 'composer', 'llmfoundry'}"
    )
    program = [sys.executable, "-c", command, two]
    said = subprocess.run(
        program, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert "14 plots" in said

    def made(folder):
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert made(tmp_path / "one") == made(two)
