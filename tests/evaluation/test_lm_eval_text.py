"""What lm-evaluation-harness is given to read."""

import json

import pytest
import yaml
from training import REPOSITORY

from dept.evaluation import continuations as continuing
from dept.evaluation.lm_eval_text import main
from dept.evaluation.scoring.questions import CHOICES, continuations


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


def test_a_document_may_give_several_questions():
    texts = ["\n".join(f"{n}-{k}" for k in range(12)) for n in range(3)]
    questions = continuations(texts, each=5, context_lines=2)
    assert len(questions) == 15 and len({q["context"] for q in questions}) == 15
    assert len(continuations(texts, each=50, context_lines=2)) == 30


def test_questions_of_the_test_are_of_text_that_nobody_trained_on(prepared, capsys):
    arguments = ["--corpus", "tiny", "--root", str(prepared), "--source"]
    assert continuing.main([*arguments, "manual"]) == 0
    folder = prepared / "data" / "downstream"
    rows = {
        split: [json.loads(n) for n in (folder / f"manual_continues_{split}.jsonl").open()]
        for split in ("train", "test")
    }
    contexts = {split: {row["context"] for row in of} for split, of in rows.items()}
    assert contexts["train"] and contexts["test"] and not contexts["train"] & contexts["test"]
    task = yaml.safe_load((REPOSITORY / "eval/yamls/finetune/continuations.yaml").read_text())
    columns = set(task["task"]["columns"].values())
    assert columns == set(rows["test"][0])
    assert continuing.main([*arguments, "no"]) == 2
    assert "error: Corpus tiny has no source 'no'" in capsys.readouterr().err


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
