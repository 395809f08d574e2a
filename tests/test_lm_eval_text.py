"""What lm-evaluation-harness is given to read."""

import json

import pytest
import yaml
from training import REPOSITORY

from eval.lm_eval_text import CHOICES, continuations, main


def test_one_of_the_lines_goes_on_with_the_text():
    texts = [f"a{n}\nb{n}\n\nc{n}\nd{n}\ne{n}" for n in range(9)] + ["too\nshort"]
    questions = continuations(texts)
    assert questions == continuations(texts) and len(questions) == 9
    for n, question in enumerate(questions):
        before, own = {"d": ("a", "b", "c"), "e": ("b", "c", "d")}, question["choices"]
        right = own[question["answer"]]
        assert question["context"] == "".join(f"{letter}{n}\n" for letter in before[right[0]])
        assert right == f"{right[0]}{n}" and len(set(own)) == CHOICES
        assert not any(line.endswith(str(n)) for line in own if line != right)
    assert len({question["answer"] for question in questions}) > 1


def test_tasks_find_what_is_written(prepared, tmp_path, capsys):
    arguments = ["--corpus", "tiny", "--root", str(prepared), "--out", str(tmp_path)]
    assert main([*arguments, "--source", "held"]) == 0
    rows = {p.name: [json.loads(n) for n in p.open()] for p in tmp_path.iterdir()}
    source = (prepared / "held.txt").read_text()
    assert rows["text.jsonl"] and all(row["text"].strip() in source for row in rows["text.jsonl"])
    for name in ("text", "continuation"):
        file = REPOSITORY / f"eval/lm_eval_tasks/prepared_{name}.yaml"
        task = yaml.safe_load(file.read_text())
        assert task["dataset_kwargs"]["data_files"]["test"] == f".lm_eval/{name}.jsonl"
        assert f"{name}.jsonl" in rows
    assert main([*arguments, "--source", "no"]) == 2
    assert "error: Corpus tiny has no source 'no'" in capsys.readouterr().err


@pytest.mark.parametrize("texts", [[], ["one\ntwo\nthree\nfour"]])
def test_too_little_text_gives_no_question(texts):
    assert continuations(texts) == []
