"""Questions of which line continues a text, made from a prepared corpus:

    python eval/continuations.py --corpus multidomain --source bible

writes, below `data/downstream`, the files that `eval/yamls/finetune/continuations.yaml` reads:
`bible_continues_train.jsonl` from the text that bodies are trained on, and
`bible_continues_test.jsonl` from validation text, which they never see. Word counts do not reveal
the answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dept.data.corpus import read_corpus
from dept.errors import DataError
from dept.evaluation.output import write_rows
from dept.evaluation.scoring.questions import continuations
from dept.evaluation.scoring.validation_text import documents
from dept.log import log


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(",")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path, default=Path(), help="folder of data/ and tokenizers/")
    parser.add_argument("--train", type=int, default=2, help="questions per training document")
    parser.add_argument("--test", type=int, default=20, help="questions per validation document")
    parser.add_argument("--lines", type=int, default=2, help="lines that a question begins with")
    chosen = parser.parse_args(arguments)
    folder = chosen.root / "data" / "downstream"
    try:
        corpus = read_corpus(chosen.root, chosen.corpus)
        corpus.source(chosen.source)
        for name, split, each in (("train", "train", chosen.train), ("test", "val", chosen.test)):
            path = folder / f"{chosen.source}_continues_{name}.jsonl"
            texts = [document.text for document in documents(corpus, chosen.source, split=split)]
            write_rows(path, continuations(texts, each, chosen.lines))
    except (DataError, OSError) as error:
        log.error(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
