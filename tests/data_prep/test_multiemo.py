"""Parallel sentences with labels, from an archive in the layout of BIG-bench."""

import io
import json
import tarfile

import pytest

from dept.data_prep import multiemo

LABELS = ["negative", "neutral", "ambivalent", "positive"]
ENGLISH = [f"Sentence {n % 50}." for n in range(60)]  # ten occur twice


def example(text, number):
    scores = {label: int(LABELS.index(label) == number % 4) for label in LABELS}
    return {"input": text, "target_scores": scores}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "bigbench.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for language in (*multiemo.LANGUAGES, "de"):
            texts = [f"{language}: {text}" if language != "en" else text for text in ENGLISH]
            task = {"examples": [example(text, n) for n, text in enumerate(texts)]}
            content = json.dumps(task).encode()
            name = f"bigbench-1.0.0/bigbench/benchmark_tasks/multiemo/all_sentence_{language}"
            entry = tarfile.TarInfo(f"{name}/task.json")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def read(root, language, split):
    path = root / "data" / "downstream" / f"multiemo_{language}_{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sentence_is_in_one_split_in_all_languages(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(multiemo, "SHA256", multiemo.sha256_of(archive))
    assert multiemo.main([str(archive), "--root", str(tmp_path)]) == 0
    assert len(list((tmp_path / "data" / "downstream").iterdir())) == 3 * len(multiemo.LANGUAGES)
    seen = {}
    for split in ("train", "val", "test"):
        english = read(tmp_path, "en", split)
        for row in english:
            assert seen.setdefault(row["text"], split) == split
        for language in ("it", "zh"):
            theirs = read(tmp_path, language, split)
            assert [row["text"] for row in theirs] == [f"{language}: {r['text']}" for r in english]
            assert [row["label"] for row in theirs] == [row["label"] for row in english]
    assert len(seen) == 50 and set(seen.values()) == {"train", "val", "test"}
    assert {row["label"] for row in read(tmp_path, "en", "train")} == set(LABELS)
    capsys.readouterr()
    assert multiemo.main([str(archive), "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("exists already") == 3 * len(multiemo.LANGUAGES)


def test_another_archive_is_refused_in_one_sentence(archive, tmp_path, capsys):
    assert multiemo.main([str(archive), "--root", str(tmp_path)]) == 2
    assert "is not the source archive of bigbench 1.0.0" in capsys.readouterr().err
    assert multiemo.main([str(tmp_path / "none"), "--root", str(tmp_path)]) == 2
    assert "none cannot be read (No such file or directory)" in capsys.readouterr().err
