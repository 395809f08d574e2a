"""Corpus yamls and the readers of text: every format, where it starts again, what it refuses."""

import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard

from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.documents import open_source, packages_of
from dept.errors import DataError

TEXTS = ["One sentence.\nAnother.", "Zwei Sätze — 漢字 🎉", "  three </s> <0x41> ▁ "]


def source_of(folder: Path, options: str, name: str = "a"):
    """The source of a one-source corpus yaml, given its options as flow yaml."""
    (folder / "c.yaml").write_text(f"corpus: c\nsources:\n  {name}: {options}\n")
    return load_corpus(folder / "c.yaml").sources[0]


def texts_of(folder: Path, options: str, position=None) -> list[str]:
    reader = open_source(source_of(folder, options), (folder,), folder / "cache", position)
    return [document.text for document in reader]


def write_rows(folder: Path) -> None:
    """The same rows in every format; every second one is of another set."""
    rows = [
        {"id": str(i), "body": text, "meta": {"set": "x" if i % 2 == 0 else "y"}}
        for i, text in enumerate(TEXTS)
    ]
    data = "".join(json.dumps(row, ensure_ascii=i == 0) + "\n" for i, row in enumerate(rows))
    data = data.encode()
    (folder / "rows.jsonl").write_bytes(data)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    half = len(data.splitlines(True)[0])  # two frames, as parallel compressors write them
    frames = [zstandard.ZstdCompressor().compress(d) for d in (data[:half], data[half:])]
    (folder / "rows.jsonl.zst").write_bytes(b"".join(frames))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "hub").mkdir()
    (folder / "hub/train.jsonl").write_bytes(data)
    (folder / "hub/validation.jsonl").write_bytes(data.splitlines(True)[0])


FORMATS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_columns_filters_and_positions(tmp_path, name):
    write_rows(tmp_path)
    options = f"{{files: rows.{name}, column: body}}"
    assert texts_of(tmp_path, options) == TEXTS
    filtered = f"{{files: rows.{name}, column: body, filter: {{meta.set: x}}}}"
    assert texts_of(tmp_path, filtered) == [TEXTS[0], TEXTS[2]]
    reader = open_source(source_of(tmp_path, options), (tmp_path,), tmp_path)
    for document in itertools.islice(iter(reader), 2):
        last = document.text
    position = json.loads(json.dumps(reader.position()))
    assert last == TEXTS[1] and texts_of(tmp_path, options, position) == [TEXTS[2]]
    with pytest.raises(DataError, match="no column 'text', it has id, body, meta"):
        texts_of(tmp_path, f"{{files: rows.{name}}}")
    nothing = open_source(
        source_of(tmp_path, f"{{files: rows.{name}, column: body, filter: {{meta.set: z}}}}"),
        (tmp_path,),
        tmp_path,
    )
    assert list(nothing) == []
    assert nothing.nothing() == "none of its 3 documents passes the filter (meta.set is x, y)"


def test_hub_data_set_in_streaming_mode(tmp_path):
    write_rows(tmp_path)
    hub = f"hub: {{name: {tmp_path / 'hub'}, split: train, val_split: validation}}"
    options = f"{{{hub}, column: body, filter: {{meta.set: [x, y]}}}}"
    source = source_of(tmp_path, options)
    documents = list(open_source(source, (), tmp_path))
    assert [(d.split, d.text) for d in documents] == [
        ("val", TEXTS[0]),
        *(("train", text) for text in TEXTS),
    ]
    for count in range(1, 5):  # behind each document, in either split
        reader = open_source(source, (), tmp_path)
        stream = iter(reader)
        for _ in range(count):
            next(stream)
        position = json.loads(json.dumps(reader.position()))
        assert list(open_source(source, (), tmp_path, position)) == documents[count:]
    with pytest.raises(DataError, match=r"split nope\) cannot be read .*check name, config and"):
        texts_of(tmp_path, f"{{hub: {{name: {tmp_path / 'hub'}, split: nope}}}}")


def test_txt_documents_are_paragraphs_lines_or_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\n three\n \t\nfour")
    (tmp_path / "b.txt").write_bytes(b"\n\nfive\n\nsix\n")
    glob = "files: '*.txt'"
    paragraphs = ["one\ntwo", " three", "four", "five", "six"]
    assert texts_of(tmp_path, f"{{{glob}}}") == paragraphs
    lines = ["one", "two", " three", "four", "five", "six"]
    assert texts_of(tmp_path, f"{{{glob}, document: line}}") == lines
    files = ["one\ntwo\n\n\n three\n \t\nfour", "five\n\nsix"]
    assert texts_of(tmp_path, f"{{{glob}, document: file}}") == files
    reader = open_source(source_of(tmp_path, f"{{{glob}}}"), (tmp_path,), tmp_path)
    for count, _ in enumerate(iter(reader), 1):
        assert texts_of(tmp_path, f"{{{glob}}}", reader.position()) == paragraphs[count:]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"good\n\nbad \xff\xfe", "a.txt line 3 is not UTF-8 .byte 0xff at 4."),
        (b"good\n\nbad \0", "a.txt line 3 holds a NUL character"),
        (b"good\n\n" + b"x" * 5000, "a.txt line 3 is longer than max_document_bytes .4,000 bytes"),
        (b"good\n\n" + "é".encode() * 4000, "a.txt line 3 is longer than max_document_bytes"),
        (b"good\n\n" + b"x\n" * 5000, "a.txt line 3 is longer than max_document_bytes"),
    ],
)
def test_bad_documents_are_refused_or_skipped(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data + b"\n\nlast")
    options = "files: a.txt, max_document_bytes: 4000"
    with pytest.raises(DataError, match=message + ".*bad_documents: skip"):
        texts_of(tmp_path, f"{{{options}}}")
    assert texts_of(tmp_path, f"{{{options}, bad_documents: skip}}") == ["good", "last"]


@pytest.mark.parametrize(
    "data, message",
    [
        (b'{"text": "a"}\n{"text": ', "a.jsonl line 2 is not JSON"),
        (b'{"text": "a"}\n["b"]', "a.jsonl line 2 is list, no JSON object"),
        (b'{"text": "a"}\n{"text": 3}', "a.jsonl line 2 has int in column 'text', not text"),
        (b'{"text": "\\ud800"}', "a.jsonl line 1 holds half a surrogate pair"),
        (b'{"text": "\xff"}', "a.jsonl line 1 is not UTF-8"),
    ],
)
def test_bad_rows(tmp_path, data, message):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path, "{files: a.jsonl}")


def test_broken_archives_are_named(tmp_path):
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            texts_of(tmp_path, f"{{files: {name}}}")


@pytest.mark.parametrize(
    "options, message",
    [
        ("{file: a.txt}", "source a has the unknown key 'file': write one of files, "),
        ("{files: a.csv}", "a.csv has an unknown format: it must end in .txt"),
        ("{files: a.txt, hub: {name: x}}", "has files and hub: give it exactly one"),
        ("{}", "has no text: give it exactly one of files, hub and package"),
        ("{files: a.txt, document: page}", "a.document is 'page': write one of paragraph"),
        ("{files: a.txt, filter: {x: y}}", "a .txt has no columns to filter by"),
        ("{hub: {config: x}}", "a.hub has no name"),
        ("{files: a.txt, split: {val_fraction: 3}}", "a.split.val_fraction is 3: write a number"),
        ("{files: a.txt, split: {train_bytes: 5parsec}}", "write a positive whole number, or a"),
        ("{files: a.txt, tokenizer: {vocab_size: 300}}", "it must be at least 512"),
        ("{files: a.txt, tokenizer: {path: x, hub: y}}", "has both path and hub"),
        ("{debian: a=1, file: x}", "source a has the unknown key 'file': write one of split, "),
        ("[a.txt]", "source a is .'a.txt'.: write a mapping"),
    ],
)
def test_mistakes_in_a_yaml_are_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        source_of(tmp_path, options)


@pytest.mark.parametrize(
    "content, message",
    [
        ("corpus: c\nsources: {no: {files: a.txt}}", "yaml takes no, yes, on, off for truth"),
        ("corpus: c\nsources: {global: {files: a.txt}}", "'global', which names something else"),
        ("corpus: c\nsources: {}", "sources is empty"),
        ("corpus: c\nseq_len: 3\nsources: {a: {files: a.txt}}", "unknown key 'seq_len'"),
        ("sources: {a: {files: a.txt}}", "corpus is None: use letters"),
        ("corpus: [", "is not yaml"),
        (
            "corpus: c\nsources: {a: {files: a.txt}}\nheld_out: {a: {files: b.txt}}",
            "a is both in sources and in held_out",
        ),
    ],
)
def test_mistakes_in_a_corpus_are_named(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_corpus(tmp_path / "c.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        load_corpus(tmp_path / "nowhere.yaml")


def test_the_corpora_of_this_repository_are_valid():
    folder = Path(__file__).parents[2] / "data_prep/corpora"
    shapes = {p.stem: load_corpus(p) for p in folder.glob("*.yaml")}
    counts = {name: (len(c.sources), len(c.held_out)) for name, c in shapes.items()}
    assert counts == {
        "multilingual": (8, 3),
        "multidomain": (8, 3),
        "greek": (1, 0),
        "languages": (8, 4),
        "languages_iid": (1, 0),  # before it is divided
        "languages_universal": (8, 4),
        "domains": (16, 2),
        "domains_by_language": (47, 31),
        "cells_by_domain": (5, 0),
        "cells_by_language": (10, 0),
        "hub_languages": (8, 3),
        "hub_domains": (16, 1),
        "hub_domains_by_language": (14, 11),
    }
    paper = shapes["hub_languages"], shapes["hub_domains"]
    assert [c.corpus for c in paper] == ["mc4", "pile"]  # the names in yamls/mc4 and yamls/pile
    assert {c.sequence_length for c in paper} == {2048}
    assert shapes["hub_languages"].own_tokenizer.vocab_size == 50257
    for name, corpus in shapes.items():
        for source in corpus.sources + corpus.held_out:
            packages_of(source)  # every package is named, and every format known
            assert bool(source.hub) == name.startswith("hub_")


def test_every_embedded_source_states_its_licence_its_size_and_its_hashes():
    for path in (Path(__file__).parents[2] / "data_prep/corpora").glob("*.yaml"):
        if path.stem.startswith("hub_"):
            continue
        content = yaml.safe_load(path.read_text())  # one that extends another has no sources
        for name, source in {**content.get("sources", {}), **content.get("held_out", {})}.items():
            if "files" in source:  # of another corpus
                continue
            assert source["documents"] > 1 and source["text_bytes"] > 10_000, (path.stem, name)
            for part in source.get("packages", [source]):
                assert part.get("licence", source.get("licence")), (path.stem, name)
                assert "generate" in part or len(part["sha256"]) == 64, (path.stem, name)


def test_cells_of_domain_and_language_are_held_out_three_ways():
    folder = Path(__file__).parents[2] / "data_prep/corpora"
    for name in ("domains_by_language", "hub_domains_by_language"):
        corpus = load_corpus(folder / f"{name}.yaml")
        trained, held = (
            {tuple(s.name.split(".")) for s in sources}
            for sources in (corpus.sources, corpus.held_out)
        )
        domains, languages = ({cell[i] for cell in trained} for i in (0, 1))
        cells = {cell for cell in held if cell[0] in domains and cell[1] in languages}
        assert len(cells) == len(domains) * len(languages) - len(trained) > 1
        others = held - cells
        assert {c for c in others if c[0] in domains} and {c for c in others if c[1] in languages}
        for domain, language in cells:  # both are learnt in other cells
            assert {c for c in trained if c[0] == domain} and {
                c for c in trained if c[1] == language
            }
