"""Readers of documentation and of binary files, on files made here."""

import io
import json
import sqlite3

import pytest

from dept.data_prep.embedded.readers import READERS


def read(form, content, **options):
    return list(READERS[form](content if isinstance(content, bytes) else content.encode(), options))


# Web pages


def test_html_gives_blocks_without_their_markup():
    page = (
        "<html><head><title>T</title><style>p {}</style></head><body><h1>A <a name=x></a>b</h1>"
        "<p>One <b>two</b><img src=x> th<i>re</i>e<br>four &amp; f&#105;ve<script>x()</script>"
        "<ul><li>six<li>seven</ul><table><tr><td>8<td>9</table></body>"
    )
    assert read("html", page) == [
        ["A b", "One two three", "four & five", "six", "seven", "8", "9"],
    ]
    assert read("html", "") == [[]]


def test_parts_of_a_page_are_chosen_by_selectors():
    page = (
        "<nav>N</nav><div id=main><p>in <span class='x mac'>Command</span><span>Ctrl</span></p>"
        "<pre>code</pre></div><p>out</p>"
    )
    assert read("html", page, keep="#main", drop=["pre", ".mac"]) == [["in Ctrl"]]
    assert read("html", page, drop="nav") == [["in CommandCtrl", "code", "out"]]
    assert read("html", page, keep="#absent") == [[]]


def test_html_in_strings_of_json():
    tree = {
        "documentation": "plain & simple",
        "x": [{"documentation": "<p>A <code>b</code>.</p><note><p>C</p></note>", "name": "no"}],
    }
    wanted = [["plain & simple", "A b.", "C"]]
    assert read("html_strings", json.dumps(tree), keys=["documentation"]) == wanted


def test_strings_of_json_by_key_and_state():
    tree = {
        "state": "old",
        "items": [
            {"state": "VALID", "text": "kept", "id": "1"},
            {"state": "REPEALED", "text": "gone", "more": {"text": "gone too"}},
            {"text": "stateless", "texts": ["no"]},
        ],
    }
    where = {"state": ["VALID", "old"]}
    assert read("translations", json.dumps(tree), keys=["text"], where=where) == [
        ["kept", "stateless"]
    ]
    assert read("translations", json.dumps(tree), where={"state": "VALID"}) == [[]]


def test_mallard_gives_paragraphs_without_credits():
    page = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>About <em>disks</em>.</desc>
      <credit><name>Jo</name></credit></info><title>Disks</title>
      <steps><item><p>Open  <app>Disks</app>\n now.</p></item></steps><media><p/></media></page>"""
    assert read("mallard", page) == [["About disks.", "Disks", "Open Disks now."]]
    with pytest.raises(ValueError):
        read("mallard", "<page><p></page>")


# Manual pages


def test_a_manual_page_without_its_macros():
    page = r""".\" comment
.TH MSGCAT 1 "Février 2023"
.SH NOM
msgcat \- combiner \fIplusieurs\fP catalogues\&.
.PP
Une ligne\ :
la suite, \(lqcit\('ee\(rq \[u00E9]t\[:e].
.\" comment
.B gras
.BR msgfmt (1)
.IP \(bu 2
point \s-1PETIT\s+1 \m[blue]bleu\m[] \\fin
.nf
code \-x
.fi
.de XX
.B definition
..
.TS
a b
.TE
.SS "Deux mots"
.UNKNOWN word
'br
c\|d \e e\" rest
"""
    assert read("man", page) == [
        [
            "NOM",
            "msgcat - combiner plusieurs catalogues.",
            "Une ligne : la suite, “citée” ét. gras msgfmt(1)",
            r"point PETIT bleu \fin",
            "Deux mots",
            r"cd \ e",
        ]
    ]
    assert read("man", ".so man1/other.1\n") == [[]]
    assert read("man", "caf\xe9".encode("latin-1"), encoding=["utf-8", "latin-1"]) == [["café"]]
    with pytest.raises(ValueError):
        read("man", b"caf\xe9")


# Debian's descriptions


def test_descriptions_of_packages():
    index = (
        "Package: 0ad\nDescription-md5: d943\nDescription-fr: jeu de stratégie\n 0 A.D. est un\n"
        " jeu.\n .\n Il a :\n  * des cartes,\n    belles\n  * des armées.\n\n"
        "Package: b\nDescription-md5: e0\nDescription-fr: titre seul\n\n"
        "Package: c\nDescription-fr: sans somme\n"
    )
    assert read("descriptions", index) == [
        [
            "jeu de stratégie",
            "0 A.D. est un jeu.",
            "Il a :",
            "* des cartes, belles",
            "* des armées.",
        ],
        ["titre seul"],
    ]
    japanese = (
        "Package: d\nDescription-md5: e0\nDescription-ja: 題\n 日本語、\n および X\n 字 字。\n"
    )
    assert read("descriptions", japanese) == [["題", "日本語、および X 字 字。"]]


# Binary files


def database(rows):
    with sqlite3.connect(":memory:") as made:
        made.execute('create table "a table" (name text, chapter integer, verse text)')
        made.executemany('insert into "a table" values (?, ?, ?)', rows)
        made.execute("create view sly as select name, chapter, verse from 'a table'")
        if hasattr(made, "serialize"):  # from Python 3.11 on
            return made.serialize()
    pytest.skip("this Python cannot serialize a database")


def test_rows_of_a_database():
    data = database([("k", 1, "In the"), ("r", 1, "Сначала"), ("k", 1, "And"), ("k", 2, "Thus")])
    options = {"table": "a table", "columns": ["verse"], "group_by": ["name", "chapter"]}
    assert read("sqlite", data, **options, where={"name": "k"}) == [["In the", "And"], ["Thus"]]
    assert read("sqlite", data, **options, where={"name": ["k", "r"], "chapter": 1}) == [
        ["In the"],
        ["Сначала"],
        ["And"],
    ]
    assert read("sqlite", data, **options, where={"name": "' or 1=1 --"}) == []
    with pytest.raises(ValueError, match="no column nope, but name, chapter, verse"):
        read("sqlite", data, table="a table", columns=["verse"], where={"nope": 1})
    with pytest.raises(ValueError, match="no column nope"):
        read("sqlite", data, table="a table", columns=["nope"])
    with pytest.raises(ValueError, match="no such table"):
        read("sqlite", data, table='x"; drop table "a table', columns=["verse"])
    with pytest.raises(ValueError, match="not a database"):
        read("sqlite", b"no database at all" * 100, table="t", columns=["verse"])


def test_compiled_translations():
    polib = pytest.importorskip("polib")
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    for entry in (
        {"msgid": "Save", "msgstr": "Salva"},
        {"msgid": "Plone", "msgstr": "Plone"},
        {"msgid": "one", "msgid_plural": "many", "msgstr_plural": {0: "uno", 1: "molti"}},
        {"msgid": "Open", "msgctxt": "menu", "msgstr": "Apri"},
    ):
        catalogue.append(polib.POEntry(**entry))
    data = catalogue.to_binary()
    assert sorted(*read("mo", data)) == ["Apri", "Salva", "molti", "uno"]
    assert sorted(*read("mo", data, originals=True)) == ["Open", "Plone", "Save", "many", "one"]
    import gettext

    assert gettext.GNUTranslations(io.BytesIO(data)).gettext("Save") == "Salva"
