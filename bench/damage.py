"""A corpus that is damaged is noticed, and the damaged file named: `make faults`.

    python bench/damage.py [--corpus multilingual] [--tries 30] [--seed 0]

It damages one file of a copy of a corpus at a random place, runs `make check-data` and the checks
of `train.py` before training, and repairs the file. It fails if a damaged file is not named.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from markdown_table import markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

SHARD, INDEX = "data/*/*/*/*/*/*.mds", "data/*/*/*/*/index.json"
STATS, TOKENIZER = "data/*/*/*/stats.json", "tokenizers/*/*/tokenizer.json"


def flip(path: Path, draw: random.Random) -> None:
    """Change one bit.

    Args:
        path: file to damage; it may not be empty.
        draw: random generator of the place.
    """
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Cut off the end of a file.

    Args:
        path: file to damage; it may not be empty.
        draw: random generator of the new length.
    """
    os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path: Path, draw: random.Random) -> None:
    """Remove a file.

    Args:
        path: file to remove.
        draw: not used.
    """
    path.unlink()


def empty(path: Path, draw: random.Random) -> None:
    """Fill a file with zeros, as some file systems do after a loss of power.

    Args:
        path: file to damage; its length stays.
        draw: not used.
    """
    path.write_bytes(bytes(path.stat().st_size))


def misname(path: Path, draw: random.Random) -> None:
    """Make an index name a missing shard.

    Args:
        path: an ``index.json`` of shards.
        draw: random generator of the shard.
    """
    content = json.loads(path.read_bytes())
    draw.choice(content["shards"])["raw_data"]["basename"] = "00000/shard.99999.mds"
    path.write_text(json.dumps(content))


def swap(path: Path, draw: random.Random) -> None:
    """Replace a file by one of the same kind from another folder.

    Args:
        path: file to replace.
        draw: random generator of the other file.
    """
    others = [p for p in path.parents[4].rglob(path.name) if p.read_bytes() != path.read_bytes()]
    shutil.copy(draw.choice(others), path)


DAMAGES: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "a bit of a shard": (SHARD, flip),
    "a shard cut short": (SHARD, cut),
    "a shard of zeros": (SHARD, empty),
    "a shard that is missing": (SHARD, remove),
    "a shard of another source": (SHARD, swap),
    "an index cut short": (INDEX, cut),
    "an index that names a shard that is not there": (INDEX, misname),
    "an index of another source": (INDEX, swap),
    "statistics cut short": (STATS, cut),
    "statistics of another source": (STATS, swap),
    "counts cut short": ("data/*/*/*/counts.npy", cut),
    "a bit of a tokenizer": (TOKENIZER, flip),
    "a tokenizer that is missing": (TOKENIZER, remove),
}


def main(arguments: list[str] | None = None) -> int:
    """Damage a corpus again and again; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="multilingual")
    parser.add_argument("--tries", type=int, default=30, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from rich.console import Console

    from dept.data_prep.check import check_corpus
    from dept.data_prep.pool import Workers

    draw, corpus, rows = random.Random(options.seed), options.corpus, []
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(0, Console(stderr=True, quiet=True)) as pool,
    ):
        root = Path(folder)
        for kind in ("data", "tokenizers"):
            text = shutil.ignore_patterns("text", "words*")
            shutil.copytree(f"{kind}/{corpus}", root / kind / corpus, ignore=text)
        # Training takes no counts of these.
        held_out = json.loads((root / "data" / corpus / "corpus.json").read_bytes())["held_out"]
        for kind, (pattern, harm) in DAMAGES.items():
            paths = sorted(root.glob(pattern))
            if pattern.endswith("counts.npy"):
                paths = [path for path in paths if path.parts[-3] not in held_out]
            found, refused = 0, 0
            for _ in range(options.tries):
                path = draw.choice(paths)
                whole = path.read_bytes()
                harm(path, draw)
                named = names(path, check_corpus(root, corpus, pool)[0])
                if not named:
                    print(f"not named: {kind}, {path.relative_to(root)}", file=sys.stderr)
                found += named
                refused += is_refused(root, corpus, path)
                path.write_bytes(whole)
            rows.append((kind, options.tries, found, refused))
    head = (f"damage to {corpus}", "times tried", "named by check-data", "before training")
    print(markdown(head, *rows))
    return int(any(min(found, refused) < tries for _, tries, found, refused in rows))


def names(path: Path, sentences: list[str]) -> bool:
    """Whether a sentence names a file, or its folder of one source and tokenizer.

    Args:
        path: path of the file, below ``data`` or ``tokenizers``.
        sentences: sentences of a check.
    """
    root, depth = ("tokenizers", 3) if "tokenizers" in path.parts else ("data", 4)
    folder = Path(*path.parts[: path.parts.index(root) + depth])
    return any(str(folder) in line for line in sentences)


def is_refused(root: Path, corpus: str, path: Path) -> bool:
    """Whether an experiment that reads a file is refused, in a sentence that names it.

    Args:
        root: folder that holds ``data/`` and ``tokenizers/``.
        corpus: name of the corpus.
        path: the damaged file.
    """
    from dept.config import complete, extends

    tokenizer = path.relative_to(root).parts[3]
    is_global = "global" in (tokenizer, path.parent.name)
    experiment = "dept_trim" if is_global else "dept_spec_opt"
    overrides = [f"variables.corpus={corpus}", f"train_loader.root={root}"]
    try:
        complete.check(extends.resolve(extends.load(f"yamls/{experiment}.yaml", overrides)))
    except ValueError as error:
        return names(path, [str(error)])
    print(f"let through: {path.relative_to(root)}", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
