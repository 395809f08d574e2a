"""Sentences of reviews with their sentiment, in nine languages, as files that fine-tuning reads.

    python data_prep/multiemo.py bigbench-1.0.0.tar.gz [--root .]

writes, below ``data/downstream``, ``multiemo_<language>_{train,val,test}.jsonl`` with `text` and
`label`, for Chinese, Dutch, English, French, Italian, Japanese, Polish, Russian and Spanish. They
are translations of the same 57,466 sentences (Kocon et al. 2021, MultiEmo), so all languages have
the same sentences in each split: 8 of 10 are for training, one each for validation and test.
German and Portuguese are left out: they lack sentences, and rows no longer correspond.

The source archive of bigbench 1.0.0 (358 MB, Apache-2.0) has to be downloaded by hand, since pip
refuses it for a dependency that names a file. It asks not to be trained on in pre-training.
Existing files are not changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from dept.data_prep.collect import document_draw
from dept.data_prep.embedded.archives import read_members
from dept.data_prep.embedded.download import sha256_of
from dept.data_prep.files import write_rows
from dept.log import log

SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
LANGUAGES = ("en", "es", "fr", "it", "ja", "nl", "pl", "ru", "zh")
MEMBER = "*/benchmark_tasks/multiemo/all_sentence_{}/task.json"


def rows(task: Mapping) -> list[dict[str, str]]:
    """The sentences of a task of BIG-bench, each with the label that scores 1.

    Args:
        task: content of a ``task.json``.
    """
    return [
        {"text": e["input"], "label": max(e["target_scores"], key=e["target_scores"].get)}
        for e in task["examples"]
    ]


def split_of(english: str) -> str:
    """The split of a sentence and of its translations, drawn by the English text."""
    draw = document_draw(english.encode())[0]
    return "val" if draw < 0.1 else "test" if draw < 0.2 else "train"


def main(arguments: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="bigbench-1.0.0.tar.gz")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that holds data/")
    options = parser.parse_args(arguments)
    try:
        found = sha256_of(options.archive)
    except OSError as error:
        log.error(f"{options.archive} cannot be read ({error.strerror}): name the source archive")
        return 2
    if found != SHA256:
        log.error(
            f"{options.archive} is not the source archive of bigbench 1.0.0: its hash differs"
        )
        return 2
    members = [MEMBER.format(language) for language in LANGUAGES]
    tasks = read_members(options.archive, members)
    of = {name.split("/")[-2][-2:]: rows(json.loads(content)) for name, content in tasks}
    splits = [split_of(row["text"]) for row in of["en"]]
    folder = options.root / "data" / "downstream"
    for language, split in product(LANGUAGES, ("train", "val", "test")):
        parallel = zip(of[language], splits, strict=True)
        chosen = [row for row, place in parallel if place == split]
        write_rows(folder / f"multiemo_{language}_{split}.jsonl", chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
