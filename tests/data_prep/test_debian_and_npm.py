"""Packages of Debian and npm: made by hand, fetched by clients that are shell scripts."""

import hashlib
import lzma
import shutil
import subprocess
import tarfile

import pytest
from packages import deb_of, stand_in, tar_of

from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.documents import fetch_package, packages_of
from dept.data_prep.embedded.archives import read_members
from dept.data_prep.embedded.download import fetch
from dept.data_prep.embedded.packages import package_documents
from dept.data_prep.pool import Task
from dept.errors import DataError

debian = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")

FILES = {"./usr/b.txt": b"2", "./usr/a.txt": b"1", "./usr/c.png": b"3"}


def written(path, content):
    path.write_bytes(content)
    return path


def link(name, kind, target="../../etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# Reading


@debian
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_the_files_of_a_deb_are_read_in_the_order_of_their_names(tmp_path, suffix):
    data = tar_of(FILES, suffix[1:], link("./usr/d.txt", tarfile.SYMTYPE))
    deb = written(tmp_path / "p.deb", deb_of(data, suffix))
    assert list(read_members(deb, "usr/*.txt")) == [("usr/a.txt", b"1"), ("usr/b.txt", b"2")]
    listed = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True)
    assert listed.returncode == 0 and listed.stdout.count("./usr/") == 4


@debian
def test_scripts_of_a_package_are_not_run(tmp_path):
    script = f"#!/bin/sh\ntouch {tmp_path}/was_run\n".encode()
    names = ("preinst", "postinst", "prerm", "postrm", "config")
    scripts = {f"./{name}": script for name in names}
    deb = written(tmp_path / "p.deb", deb_of(tar_of(FILES), scripts=scripts))
    assert len(list(read_members(deb, "*"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["p.deb"]


@debian
def test_reading_can_stop_early(tmp_path):
    many = {f"./{n:05}.txt": bytes(1 << 16) for n in range(100)}
    deb = written(tmp_path / "p.deb", deb_of(tar_of(many)))
    assert next(read_members(deb, "*"))[0] == "00000.txt"


@debian
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (deb_of(tar_of(FILES, "xz"), ".xz")[:-40], r"p\.deb is not a whole archive .*: delete it"),
        (deb_of(tar_of(FILES)[:600]), r"p\.deb is not a whole archive"),
        (deb_of(b"no tar"), r"p\.deb is not a whole archive"),
        (b"!<arch>\ndebian-binary   rubbish", r"p\.deb is not a whole archive"),
        (deb_of(tar_of({"../evil.txt": b""})), "points outside the archive: do not use"),
        (deb_of(tar_of({"/etc/evil.txt": b""})), "points outside the archive: do not use"),
        (deb_of(tar_of(FILES) + bytes(1 << 20)), r"its tar continues after its end"),
        (deb_of(tar_of({"./a.png": b""})), r"no file in p\.deb matches members \['\*\.txt'\]"),
    ],
)
def test_a_deb_that_is_torn_or_hostile_is_refused(tmp_path, content, message):
    deb = written(tmp_path / "p.deb", content)
    with pytest.raises(ValueError, match=message):
        list(read_members(deb, "*.txt"))


@debian
def test_a_deb_that_is_a_bomb_is_refused(tmp_path):
    zeros = tar_of({"./big.txt": bytes(60 << 20)}, "xz")
    deb = written(tmp_path / "p.deb", deb_of(zeros, ".xz"))
    with pytest.raises(ValueError, match=r"more than 8,388,608 bytes come out of it"):
        list(read_members(deb, "*.png", total=8 << 20))
    with pytest.raises(ValueError, match=r"big\.txt in p\.deb is larger than 1,000 bytes"):
        list(read_members(deb, "*.txt", limit=1000))


@debian
def test_a_dpkg_deb_that_is_killed_gives_no_part_of_a_package(tmp_path, monkeypatch):
    deb = written(tmp_path / "p.deb", deb_of(tar_of(FILES)))
    script = f'{shutil.which("dpkg-deb")} "$@" | head -c 1024\nkill -9 $$\n'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", "dpkg-deb", script))
    with pytest.raises(ValueError, match=r"p\.deb is not a whole archive \(dpkg-deb ended with -9"):
        list(read_members(deb, "*.txt"))


@debian
def test_memory_of_dpkg_deb_is_bounded(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    # Encoders need many times the dictionary: the header alone is changed to announce 1.5 GiB.
    small = lzma.compress(tar_of(FILES), filters=[{**filters[0], "dict_size": 1 << 16}])
    header = bytearray(small[12:24])
    assert header[1] == 0 and header[2] == 0x21 and header[3] == 1
    header[4] = 39  # 3 * 2^(39 // 2 + 11) bytes
    checksum = (lambda crc: crc.to_bytes(4, "little"))(__import__("zlib").crc32(bytes(header[:8])))
    wide = small[:12] + bytes(header[:8]) + checksum + small[24:]
    assert lzma.decompress(wide) == tar_of(FILES)
    deb = written(tmp_path / "p.deb", deb_of(wide, ".xz"))
    with pytest.raises(ValueError, match=r"p\.deb is not a whole archive .*memory"):
        list(read_members(deb, "*"))


# Downloads

INDEX = "bookworm/main/i18n/Translation-fr"
REQUIREMENTS = {
    "deb": "manpages-fr=1:4.18.1-1~a",
    "npm": "@scope/some.name@1.2.3",
    "index": INDEX,
}


@pytest.mark.parametrize("kind", REQUIREMENTS)
def test_a_missing_client_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("PATH", "")
    name = "npm" if kind == "npm" else "apt-get"
    with pytest.raises(RuntimeError, match=f"^{name}, which this text needs, is not installed: "):
        fetch(REQUIREMENTS[kind], tmp_path, kind=kind, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_deb_needs_dpkg_deb(tmp_path, monkeypatch):
    deb = written(tmp_path / "p.deb", deb_of(tar_of(FILES)))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="dpkg-deb, which this text needs, is not installed"):
        list(read_members(deb, "*"))


def test_preparation_names_the_source_that_needs_the_client(tmp_path, monkeypatch):
    options = "{debian: pp=1, sha256: aa, members: '*', format: text}"
    (tmp_path / "c.yaml").write_text(f"corpus: c\nsources:\n  fr: {options}\n")
    (source,) = load_corpus(tmp_path / "c.yaml").sources
    ((key, part),) = packages_of(source).items()
    assert key == ("pp=1", "deb", "aa")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"^Source fr: apt-get, which this text needs, is not inst"):
        fetch_package(Task(), source.name, part, tmp_path)


@pytest.mark.parametrize("kind", ["deb", "npm"])
def test_the_client_is_asked_once_for_the_version_that_is_pinned(tmp_path, monkeypatch, kind):
    name = {"deb": "apt-get", "npm": "npm"}[kind]
    script = f'echo "$@" >> {tmp_path}/calls\nprintf content > archive.{kind}\n'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", name, script))
    sha256 = hashlib.sha256(b"content").hexdigest()
    for _ in range(2):
        path = fetch(REQUIREMENTS[kind], tmp_path / "cache", kind=kind, sha256=sha256)
        assert path.read_bytes() == b"content" and path.parent.parent == tmp_path / "cache"
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.split()[0] == {"deb": "download", "npm": "pack"}[kind]
    assert call.split()[-1] == REQUIREMENTS[kind]
    assert kind == "deb" or "--ignore-scripts" in call
    with pytest.raises(ValueError, match=r"has the sha256 .* and the corpus yaml wants 0{64}"):
        fetch(REQUIREMENTS[kind], tmp_path / "cache", kind=kind, sha256="0" * 64)


@pytest.mark.parametrize(
    ("kind", "says", "message"),
    [
        (
            "deb",
            "E: Version '1' for 'manpages-fr' was not found",
            r"apt-get could not download manpages-fr=\S+ \(E: Version '1' for 'manpages-fr' was "
            r"not found\): run `apt-get update`; if `apt-cache policy manpages-fr` then shows",
        ),
        (
            "npm",
            "npm error code ETARGET\nnpm error notarget No matching version\nnpm error A log",
            r"npm could not download @scope/some.name@1.2.3 \(npm error notarget No matching "
            r"version\): check the network",
        ),
        (
            "index",
            "W: Failed to fetch",
            r"apt-get could not fetch bookworm/main/i18n/Translation-fr \(W: Failed to fetch\): "
            r"check the network, that /etc/apt/sources.list names bookworm main",
        ),
    ],
)
def test_what_the_client_says_is_passed_on(tmp_path, monkeypatch, kind, says, message):
    name = "npm" if kind == "npm" else "apt-get"
    script = f'case "$*" in *indextargets*) ;; *) echo "{says}" >&2; exit 100;; esac\n'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", name, script))
    with pytest.raises(RuntimeError, match=message):
        fetch(REQUIREMENTS[kind], tmp_path / "cache", kind=kind, sha256="0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_index_is_fetched_into_folders_of_its_own(tmp_path, monkeypatch):
    script = f"""
for option in "$@"; do
    case "$option" in
        --option=Dir::State=*) state="${{option#--option=Dir::State=}}";;
        --option=Acquire::Languages=*) language="${{option#--option=Acquire::Languages=}}";;
    esac
done
echo "$state" >> {tmp_path}/states
case "$*" in
    *update*) printf "$language" > "$state/lists/it";;
    *"Codename: bookworm Component: main Language: fr"*) echo "$state/lists/it";;
esac
"""
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", "apt-get", script))
    sha256 = hashlib.sha256(b"fr").hexdigest()
    path = fetch(INDEX, tmp_path / "cache", kind="index", sha256=sha256)
    assert path.read_bytes() == b"fr" and path.name == "Translation-fr"
    first, second = (tmp_path / "states").read_text().split()
    assert first == second and first.startswith(f"{tmp_path}/cache/")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["bookworm-main-fr-index"]


@pytest.mark.parametrize(
    ("requirement", "kind", "message"),
    [
        ("manpages-fr", "deb", "is not pinned: write name=version"),
        ("manpages-fr=1 --option=x", "deb", "is not pinned"),
        ("--option=x", "deb", "is not pinned"),
        ("three@latest", "npm", "is not pinned: write name@version"),
        ("../three@1.0.0", "npm", "is not pinned"),
        ("bookworm/main/fr", "index", "write suite/component/i18n/Translation-xx"),
    ],
)
def test_debian_and_npm_requirements_must_be_pinned(tmp_path, requirement, kind, message):
    with pytest.raises(ValueError, match=message):
        fetch(requirement, tmp_path, kind=kind, sha256="0" * 64)


def test_an_index_has_no_version_and_so_needs_a_hash(tmp_path):
    with pytest.raises(ValueError, match="is an index, which has no version, and has no sha256"):
        fetch(INDEX, tmp_path, kind="index")


# Sources


@debian
def test_a_source_of_debs_without_what_is_left_in_english(tmp_path):
    html = "<p>{}</p><p>{}</p>"
    files = {
        "help-fr": ("Ouvrir le fichier", "Save the file"),
        "help-en": ("Open", "Save the file"),
    }
    for name, texts in files.items():
        folder = tmp_path / f"{name}-1-deb"
        folder.mkdir()
        data = tar_of({"./usr/help.html": html.format(*texts).encode()})
        written(folder / "p.deb", deb_of(data))
    source = {
        "debian": "help-fr=1",
        "members": "usr/*.html",
        "format": "html",
        "untranslated": {"debian": "help-en=1"},
    }
    assert list(package_documents(source, tmp_path)) == ["Ouvrir le fichier"]


@debian
def test_an_archive_that_two_parts_read_is_unpacked_once(tmp_path, monkeypatch):
    (tmp_path / "pp-1-deb").mkdir()
    files = {"./en.txt": b"Save", "./fr.txt": b"Ouvrir\n\nSave", "./no.txt": b"Non"}
    written(tmp_path / "pp-1-deb/p.deb", deb_of(tar_of(files)))
    script = f'echo x >> {tmp_path}/calls\nexec {shutil.which("dpkg-deb")} "$@"\n'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", "dpkg-deb", script))
    source = {
        "debian": "pp=1",
        "members": "*.txt",
        "exclude": ["en.txt", "no.txt"],
        "format": "text",
        "untranslated": "en.txt",
    }
    assert list(package_documents(source, tmp_path)) == ["Ouvrir"]
    assert (tmp_path / "calls").read_text() == "x\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"npm": "three@1.0.0"}, "a source has debian and npm: give it, or each of its packages"),
        ({"kind": "sdist"}, "kind of pp=1 is for packages of PyPI alone: leave it out"),
        (
            {"untranslated": {"debian": "qq=1", "member": "x"}},
            r"member is not a key of a source from a package",
        ),
    ],
)
def test_mistakes_in_a_source_of_debian_are_named(tmp_path, change, message):
    source = {"debian": "pp=1", "members": "a.txt", "format": "text", **change}
    with pytest.raises(ValueError, match=message):
        list(package_documents(source, tmp_path))
