"""Writes validation text of a prepared corpus for the tasks in eval/lm_eval_tasks/:

    python eval/lm_eval_text.py --corpus multilingual --source en

lm-evaluation-harness reads it as a local data set, without the hub: `make lm-eval` does both.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if (REPOSITORY := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, REPOSITORY)

from data_prep.collect import part_path
from data_prep.files import read_json, read_texts
from dept.corpus import DataError, read_corpus

OUT = Path(".lm_eval")
"""Where the tasks look, from the folder that lm_eval is started in."""

CHOICES = 4
CONTEXT_LINES = 3


def continuations(texts: Sequence[str], seed: int = 17) -> list[dict[str, Any]]:
    """Questions of which line goes on with a text: its own, or one of other texts.

    Args:
        texts: documents; those of too few lines give no question.
        seed: of the lines to choose among.

    Returns:
        ``context``, which ends with a newline, ``choices`` and ``answer``, the index of the true
        one.
    """
    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    draw, questions = random.Random(seed), []
    for n, own in enumerate(lines):
        others = sorted({line for m, theirs in enumerate(lines) if m != n for line in theirs})
        others = [line for line in others if line not in own]
        if len(own) <= CONTEXT_LINES or len(others) < CHOICES - 1:
            continue
        at = draw.randrange(CONTEXT_LINES, len(own))
        choices = [own[at], *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        context = "\n".join(own[at - CONTEXT_LINES : at]) + "\n"
        questions.append({"context": context, "choices": choices, "answer": choices.index(own[at])})
    return questions


def validation_texts(root: Path, corpus: str, source: str) -> list[str]:
    """Documents of the validation split.

    Raises:
        DataError: the corpus or its text is missing, or it has no such source.
    """
    folder = read_corpus(root, corpus).source(source).directory.parent
    collected = read_json(folder / "text" / "collected.json")
    if collected is None:
        raise DataError(f"{folder / 'text'} does not exist: prepare the corpus on this machine")
    parts = collected["val"]["parts"]
    return [text for n in parts for text in read_texts(part_path(folder, "val", n))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path, default=Path(), help="of data/ and tokenizers/")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    chosen = parser.parse_args(arguments)
    try:
        texts = validation_texts(chosen.root, chosen.corpus, chosen.source)
        tables = {"text": [{"text": text} for text in texts], "continuation": continuations(texts)}
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (chosen.out / f"{name}.jsonl").write_text("".join(lines))
            print(f"{chosen.out / name}.jsonl: {len(rows)} rows of {chosen.source}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
