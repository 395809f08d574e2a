"""Archives are made in the test; nothing is downloaded."""

import bz2
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile

import pytest

from dept.data_prep.embedded import download
from dept.data_prep.embedded.archives import read_members
from dept.data_prep.embedded.download import fetch
from dept.data_prep.embedded.mathematics import MODULES, mathematics
from dept.data_prep.embedded.packages import package_documents
from dept.data_prep.embedded.readers import READERS


def make_wheel(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def cached(cache, requirement, files):
    """Puts a wheel where `fetch` looks first."""
    name, version = requirement.split("==")
    folder = cache / f"{name}-{version}-wheel"
    folder.mkdir(parents=True)
    return make_wheel(folder / f"{name}-{version}-py3-none-any.whl", files)


def read(form, content, **options):
    return list(READERS[form](content if isinstance(content, bytes) else content.encode(), options))


# Formats


def test_text_is_cut_at_blank_lines():
    assert read("text", "One\ntwo\r\n\r\n \nThree") == [["One\ntwo", "Three"]]
    assert read("text", "One\ntwo\n\nThree", lines=True) == [["One", "two", "Three"]]
    assert read("text", "Keep. CUT THIS. Keep.", remove=r" CUT \w+\.") == [["Keep. Keep."]]


def test_translations_are_read_at_any_depth():
    tree = {"title": "Add", "steps": {"user": {"data": ["Host", {"x": "Port"}]}}, "n": 1}
    assert read("translations", json.dumps(tree)) == [["Add", "Host", "Port"]]


def test_po_gives_what_is_translated_and_current():
    pytest.importorskip("polib")
    text = (
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
        'msgid "Save"\nmsgstr "Salva"\n\n'
        '#, fuzzy\nmsgid "Open"\nmsgstr "Chiudi"\n\n'
        'msgid "Plone"\nmsgstr "Plone"\n\n'
        'msgid "one"\nmsgid_plural "many"\nmsgstr[0] "uno"\nmsgstr[1] "molti"\n\n'
        'msgid "empty"\nmsgstr ""\n\n'
        '#~ msgid "Old"\n#~ msgstr "Vecchio"\n'
    )
    assert read("po", text) == [["Salva", "uno", "molti"]]


def test_python_is_cut_at_the_left_margin():
    function = "def f(\n    a,\n):\n    x = 1\n\n    return x"
    code = f"#!/bin/x\n# licence\n\nimport os\n\n\n{function}\n\nf(1)\n"
    assert read("python", code) == [["import os", function, "f(1)"]]


def test_csv_columns_by_number_and_name():
    assert read("csv", 'a,"x\n\ny"\nb,z\n', columns=[1]) == [["x", "y"], ["z"]]
    assert read("csv", "k,t\n1,a\n1,b\n2,c\n", columns=["t"], header=True, group_by=["k"]) == [
        ["a", "b"],
        ["c"],
    ]
    assert read("csv", '1\tsay "hi\n', columns=[1], delimiter="\t") == [['say "hi']]
    assert read("csv", "1,a\\n\\nb\n", columns=[1], unescape=True) == [["a", "b"]]


def test_json_and_jsonl():
    rows = [{"t": "a", "u": None}, {"t": "b"}]
    assert read("json", json.dumps({"rows": rows}), records="rows", columns=["t"]) == [["a"], ["b"]]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert read("jsonl", lines, columns=["t"]) == [["a"], ["b"]]


def test_obo_gives_terms_with_a_definition():
    text = (
        "format-version: 1.2\n\n"
        '[Term]\nid: X:1\nname: Cough\ndef: "A \\"loud\\" sound." [ref]\ncomment: Common.\n\n'
        "[Term]\nid: X:2\nname: Bare\n\n"
        '[Term]\nid: X:3\nname: Old\ndef: "Gone." []\nis_obsolete: true\n'
    )
    assert read("obo", text) == [['Cough. A "loud" sound. Common.']]


def test_mediawiki_gives_the_prose_of_articles():
    pytest.importorskip("mwparserfromhell")
    page = "<page><title>{}</title><ns>{}</ns><revision><text>{}</text></revision></page>"
    article = (
        "{{Infobox|x=1}}'''Anarchism''' is a [[political philosophy|philosophy]]"
        "&lt;ref&gt;A&lt;/ref&gt;.\n"
        "[[File:A.jpg|thumb|A ''caption'' with [[link]]]]\n\n== History ==\nIt began.\n"
        "{| class=x\n| cell\n|}\n\nLet &lt;math&gt;x&lt;/math&gt; be.\n"
        "== See also ==\n* [[Other]]\n"
    )
    dump = "<mediawiki xmlns='http://x/'>{}</mediawiki>".format(
        page.format("Anarchism", 0, article)
        + page.format("Old", 0, "#REDIRECT [[Anarchism]]")
        + page.format("Talk:X", 1, "Hello there.")
    )
    assert read("mediawiki", dump) == [
        ["Anarchism", "Anarchism is a philosophy.", "History", "It began."]
    ]


# Archives


def test_members_come_by_name_whatever_the_order_in_the_archive(tmp_path):
    files = {"p/b.txt": b"2", "p/a.txt": b"1", "p/x.py": b"3", "p/t/c.txt": b"4"}
    wheel = make_wheel(tmp_path / "w.whl", files)
    sdist = tmp_path / "s.tar.gz"
    sdist.write_bytes(make_tar(files))
    for archive in (wheel, sdist):
        found = list(read_members(archive, "p/*.txt", "*/t/*"))
        assert found == [("p/a.txt", b"1"), ("p/b.txt", b"2")]


def test_packed_members_and_archives_in_archives(tmp_path):
    wheel = make_wheel(
        tmp_path / "w.whl",
        {
            "a.gz": gzip.compress(b"A"),
            "b.bz2": bz2.compress(b"B"),
            "c.tar.gz": make_tar({"t": b"C"}),
        },
    )
    assert [data for _, data in read_members(wheel, ["a.gz", "b.bz2"])] == [b"A", b"B"]
    inner = next(read_members(wheel, "c.tar.gz"))[1]
    assert list(read_members(wheel, "t", content=inner)) == [("t", b"C")]


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "a/../../evil", "c:\\evil"])
def test_a_name_that_points_outside_is_refused(tmp_path, name):
    sdist = tmp_path / "s.tar.gz"
    sdist.write_bytes(make_tar({"good.txt": b"1", name: b"2"}))
    wheel = make_wheel(tmp_path / "w.whl", {"good.txt": b"1", name: b"2"})
    for archive in (sdist, wheel):
        with pytest.raises(ValueError, match="points outside the archive: do not use this package"):
            list(read_members(archive, "*.txt"))


def test_bombs_are_refused(tmp_path):
    big = b"0" * 5000
    wheel = make_wheel(tmp_path / "w.whl", {"big.txt": big, "big.gz": gzip.compress(big)})
    sdist = tmp_path / "s.tar.gz"
    sdist.write_bytes(make_tar({"big.txt": big}))
    for archive in (wheel, sdist):
        with pytest.raises(ValueError, match=r"big\.txt in .* is larger than 1,000 bytes: leave"):
            list(read_members(archive, "big.txt", limit=1000))
    with pytest.raises(ValueError, match=r"big\.gz in .* cannot be unpacked \(more than 1,000"):
        list(read_members(wheel, "big.gz", limit=1000))


def test_a_torn_archive_and_a_pattern_without_a_match_are_named(tmp_path):
    torn = tmp_path / "torn.tar.gz"
    whole = make_tar({"a": bytes(range(256)) * 200})
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"torn\.tar\.gz is not a whole archive .*: delete it"):
        list(read_members(torn, "a"))
    wheel = make_wheel(tmp_path / "w.whl", {"a.txt": b""})
    with pytest.raises(ValueError, match=r"no file in w\.whl matches members \['\*\.md'\]"):
        list(read_members(wheel, "*.md"))


# Downloads


def test_requirements_must_be_pinned(tmp_path):
    with pytest.raises(ValueError, match="is not pinned: write name==version"):
        fetch("django>=5", tmp_path)
    with pytest.raises(ValueError, match="write wheel or sdist"):
        fetch("django==5.1.4", tmp_path, kind="egg")


def test_a_cached_archive_is_checked_and_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    path = cached(tmp_path, "p==1", {"a": "b"})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fetch("p==1", tmp_path, sha256=sha256) == path
    with pytest.raises(ValueError, match=r"p-1-py3.* has the sha256 .* delete the folder"):
        fetch("p==1", tmp_path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("ERROR: No matching distribution", RuntimeError, "No matching .*: check the network"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n Got  " + "a" * 64, ValueError, "a{64}"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch, stderr, error, message):
    def run(command, **_):
        assert "--require-hashes" in command and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(download, "_pip", lambda: ["pip"])
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(error, match=message):
        fetch("p==1", tmp_path, sha256="b" * 64)
    assert list(tmp_path.iterdir()) == []


# Sources


def test_documents_of_a_source(tmp_path):
    cached(
        tmp_path,
        "p==1",
        {
            "p/b/it.json": json.dumps({"a": "Aggiungi il dispositivo", "b": "Host"}),
            "p/a/it.json": json.dumps({"a": "Aggiungi il dispositivo!", "b": "Ciao {name}"}),
            "p/a/en.json": json.dumps({"b": "Host"}),
        },
    )
    cached(tmp_path, "q==2", {"q/more.txt": "Un altro pacchetto."})
    source = {
        "packages": [
            {"package": "p==1", "members": "p/*/it.json", "format": "translations"},
            {"package": "q==2", "members": "*.txt", "format": "text", "untranslated": None},
        ],
        "untranslated": "p/*/en.json",
        "clean": {"min_document_chars": 1},
    }
    made = list(package_documents(source, tmp_path))
    assert made == ["Aggiungi il dispositivo!", "Un altro pacchetto."]
    assert list(package_documents(source, tmp_path)) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": "x"}, r"member is not a key of a source from a package \(p==1\): write one of"),
        ({"format": "docx"}, r"format 'docx' of package p==1 is unknown: write one of csv, desc"),
        ({"format": "json", "columns": [0]}, r"a\.txt in p-1.* cannot be read as json"),
        ({"format": "csv", "columns": [7]}, r"a\.txt in p-1.* cannot be read as csv"),
        ({"members": ""}, r"a source lacks the key members"),
        ({"generate": {"kind": "poems"}}, r"is not understood: write kind: mathematics"),
    ],
)
def test_mistakes_in_a_source_are_named(tmp_path, change, message):
    cached(tmp_path, "p==1", {"a.txt": "text"})
    source = {"package": "p==1", "members": "a.txt", "format": "text", **change}
    with pytest.raises(ValueError, match=message):
        list(package_documents(source, tmp_path))


# Mathematics


def test_mathematics_is_the_same_everywhere():
    text = "\n".join(passage for group in mathematics(200, seed=1) for passage in group)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1ffa320d244770a5"


def test_answers_are_right():
    from fractions import Fraction

    checked = 0
    for group in mathematics(documents=18 * 5):
        for passage in group:
            question, answer = passage.split("\n")
            words = question.rstrip(".?").split(" ")
            if question.startswith("Evaluate "):
                text = question.removeprefix("Evaluate ").rstrip(".")
                a, _, b = text.partition(")/(")
                value = Fraction(eval(a + ")"), eval("(" + b)) if b else eval(text)
            elif question.startswith("Calculate the remainder"):
                value = int(words[4]) % int(words[-1])
            elif question.startswith("Solve ") and "," not in question:
                left, right = question.removeprefix("Solve ").split(" for ")[0].split(" = ")
                if answer == "any":
                    continue
                x = {words[-1]: int(answer)}
                value, answer = eval(left, x), str(eval(right, x))
            elif question.startswith("Convert "):
                value = int(words[1], int(words[3].rstrip(")")))
            else:
                continue
            checked += 1
            assert str(value) == answer, passage
    assert checked > 100
    assert len(MODULES) == 18
