"""Archives made to do harm: little memory is taken, and one sentence says what is wrong."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager

import pytest
import zstandard

from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.documents import open_source
from dept.data_prep.embedded.archives import read_members
from dept.data_prep.embedded.download import fetch
from dept.data_prep.embedded.unpack import Damaged, TooMuch, unpack
from dept.errors import DataError

MEGABYTE = bytes(1 << 20)
OPENERS = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def bomb(path, kind, megabytes, head=b""):
    with OPENERS[kind](path, "wb") as file:
        file.write(head)
        for _ in range(megabytes):
            file.write(MEGABYTE)
    return path


def header(name, size=0, kind=tarfile.REGTYPE, form=tarfile.GNU_FORMAT):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(form)


@contextmanager
def refused(message):
    """Expects the sentence, and no more than 40 MB of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            yield
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", OPENERS)
def test_a_member_that_is_packed_again_is_a_bomb(tmp_path, kind):
    packed = bomb(tmp_path / f"a.{kind}", kind, 60)
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.write(packed, packed.name)
    with refused(r"cannot be unpacked \(more than 4,194,304 bytes"):
        list(read_members(tmp_path / "w.whl", "*", limit=4 << 20))


@pytest.mark.parametrize("kind", OPENERS)
def test_a_tar_of_zeros_is_not_unpacked_to_its_end(tmp_path, kind):
    size = 60 << 20
    path = bomb(tmp_path / f"a.tar.{kind}", kind, 60, header("big.bin", size))
    with pytest.raises(
        ValueError, match=r"more than 8,388,608 bytes come out .* max_archive_bytes"
    ):
        list(read_members(path, "*.txt", total=8 << 20))
    with refused(r"big.bin in .* is larger than 4,194,304 bytes"):
        list(read_members(path, "*.bin", limit=4 << 20))


def test_many_files_of_a_zip_are_a_bomb_together(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.txt", MEGABYTE)
    with refused(r"w.whl is not unpacked, more than 10,000,000 bytes"):
        list(read_members(tmp_path / "w.whl", "*", total=10_000_000))


def test_a_zip_that_lies_about_sizes(tmp_path):
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", MEGABYTE * 100)
    data = bytearray(path.read_bytes())
    for place in (data.index(b"PK\x03\x04") + 22, data.rindex(b"PK\x01\x02") + 24):
        data[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with refused(r"is not a whole archive|is larger than"):
        list(read_members(path, "*", limit=1 << 20))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_announce_gigabytes(tmp_path, kind):
    path = bomb(tmp_path / "a.tar.gz", "gz", 64, header("x", 3 << 30, kind))
    with refused(r"it announces 3,221,225,472 bytes at once"):
        list(read_members(path, "*", limit=4 << 20))


def test_names_links_and_devices(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in (
            ("symlink.txt", tarfile.SYMTYPE),
            ("hardlink.txt", tarfile.LNKTYPE),
            ("device.txt", tarfile.CHRTYPE),
            ("pipe.txt", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("ok.txt"), io.BytesIO())
    assert list(read_members(path, "*.txt")) == [("ok.txt", b"")]
    for name, message in (
        ("d/" * 1000 + "deep", "holds a name of 2,004 characters"),
        ("/etc/cron.d/x", "points outside the archive"),
        ("a/../../x", "points outside the archive"),
    ):
        path.write_bytes(gzip.compress(b""))
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(ValueError, match=message):
            list(read_members(path, "*"))


def test_unpacking_gives_what_was_packed():
    text = bytes(range(256)) * 5000
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        packed = compress(text)
        assert unpack(packed, len(text)) == text
        assert unpack(packed + compress(b"more"), len(text) + 4) == text + b"more"
        with pytest.raises(TooMuch):
            unpack(packed, len(text) - 1)
        with pytest.raises(Damaged):
            unpack(packed[: len(packed) // 2], len(text))
    wide = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    with pytest.raises(Damaged, match="Memory usage limit"):
        unpack(lzma.compress(b"x", filters=wide), 100)


def test_an_sdist_without_a_hash_is_not_run(tmp_path):
    with pytest.raises(ValueError, match=r"is an sdist, which pip runs code of .* no sha256"):
        fetch("p==1", tmp_path, kind="sdist")


def documents(root, files, options=""):
    (root / "c.yaml").write_text(
        "corpus: c\nsources:\n  a: {files: " + files + ", max_document_bytes: 1MB" + options + "}\n"
    )
    (source,) = load_corpus(root / "c.yaml").sources
    return [document.text for document in open_source(source, (root,), root)]


def test_one_line_of_a_gigabyte_is_refused_at_its_start(tmp_path):
    with zstandard.open(tmp_path / "a.txt.zst", "wb") as packed:
        packed.write(b"good\n\n")
        for _ in range(1000):
            packed.write(b"x" * (1 << 20))
    with refused(r"line 3 is longer than max_document_bytes .* raise that"):
        documents(tmp_path, "a.txt.zst")
    with refused(r"unpacks to more than 100,000,000 bytes"):
        documents(tmp_path, "a.txt.zst", ", bad_documents: skip, max_unpacked_bytes: 100MB")


@pytest.mark.parametrize("kind", ["paragraph", "line", "file"])
def test_what_follows_a_document_that_is_too_long(tmp_path, kind):
    long = b"x" * 3_000_000
    (tmp_path / "a.1.txt").write_bytes(b"\xef\xbb\xbf" + long + b"\nmore\n\nafter\r\n" + b"\n" * 10)
    (tmp_path / "a.2.txt").write_bytes(b"first\r\n" + b"y" * 999_990 + b"\n" * 100)
    kept = {
        "paragraph": ["after", "first\n" + "y" * 999_990],
        "line": ["more", "after", "first", "y" * 999_990],
        "file": ["first\n" + "y" * 999_990],
    }
    options = f", bad_documents: skip, document: {kind}"
    assert documents(tmp_path, "a.*.txt", options) == kept[kind]


def test_json_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + "[" * 100_000)
    with pytest.raises(DataError, match=r"a.jsonl line 2 is not JSON"):
        documents(tmp_path, "a.jsonl")
