"""Writes validation text of a prepared corpus for the tasks in eval/lm_eval_tasks/:

    python eval/lm_eval_text.py --corpus multilingual --source en

lm-evaluation-harness reads it as a local data set, without the hub: `make lm-eval` does both.
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

OUT = Path(".lm_eval")
"""Folder that the tasks read, relative to the working directory of lm_eval."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", type=Path, default=Path(), help="of data/ and tokenizers/")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    chosen = parser.parse_args(arguments)
    try:
        corpus = read_corpus(chosen.root, chosen.corpus)
        corpus.source(chosen.source)
        texts = [document.text for document in documents(corpus, chosen.source)]
        tables = {"text": [{"text": text} for text in texts], "continuation": continuations(texts)}
        for name, rows in tables.items():
            write_rows(chosen.out / f"{name}.jsonl", rows)
    except (DataError, OSError) as error:
        log.error(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
