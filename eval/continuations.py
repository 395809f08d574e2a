"""Questions of which line goes on with a text, made from a prepared corpus:

    python eval/continuations.py --corpus multidomain --source bible

writes, below `data/downstream`, `bible_continues_train.jsonl` from the text that bodies are trained
on, and `bible_continues_test.jsonl` from validation text, which they never see: what
`eval/yamls/finetune/continuations.yaml` reads. Counting words says nothing of the answer.
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

from dept.checkpoint import durable
from dept.data.corpus import read_corpus
from dept.errors import DataError
from eval.validation_text import documents

CHOICES = 4
CONTEXT_LINES = 3


def continuations(
    texts: Sequence[str], each: int = 1, context_lines: int = CONTEXT_LINES, seed: int = 17
) -> list[dict[str, Any]]:
    """Questions of which line goes on with a text: its own, or one of other texts.

    Args:
        texts: documents; those of too few lines give no question.
        each: questions of a document, if it has as many lines after the first ones.
        context_lines: that a question begins with.
        seed: of the places to ask at, and of the lines to choose among.

    Returns:
        ``context``, which ends with a newline, ``choices`` and ``answer``, the index of the true
        one.
    """
    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    every = sorted({line for own in lines for line in own})
    draw, questions = random.Random(seed), []
    for own in lines:
        places = range(context_lines, len(own))
        if not places or len(every) - len(set(own)) < CHOICES - 1:
            continue
        for at in sorted(draw.sample(places, min(each, len(places)))):
            others: set[str] = set()
            while len(others) < CHOICES - 1:
                others |= {draw.choice(every)} - set(own)
            choices = [own[at], *sorted(others)]
            draw.shuffle(choices)
            context = "\n".join(own[at - context_lines : at]) + "\n"
            answer = choices.index(own[at])
            questions.append({"context": context, "choices": choices, "answer": answer})
    return questions


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(",")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path, default=Path(), help="folder of data/ and tokenizers/")
    parser.add_argument("--train", type=int, default=2, help="questions of a training document")
    parser.add_argument("--test", type=int, default=20, help="of one of validation")
    parser.add_argument("--lines", type=int, default=2, help="that a question begins with")
    chosen = parser.parse_args(arguments)
    folder = chosen.root / "data" / "downstream"
    try:
        corpus = read_corpus(chosen.root, chosen.corpus)
        corpus.source(chosen.source)
        for name, split, each in (("train", "train", chosen.train), ("test", "val", chosen.test)):
            path = folder / f"{chosen.source}_continues_{name}.jsonl"
            texts = [document.text for document in documents(corpus, chosen.source, split=split)]
            questions = continuations(texts, each, chosen.lines)
            lines = (json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
            durable.write(path, "".join(lines))
            print(f"{path}: {len(questions):,} rows")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
