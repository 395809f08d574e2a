"""A prepared corpus that is damaged again and again: `make faults`.

    python bench/damage.py [--corpus multilingual] [--tries 30] [--seed 0]

Damages one file of a copy at a random place, asks `make check-data`, then the check that
`train.py` makes before it trains, and repairs it. Told is how often each of them named the file,
by kind of damage. Fails if one was not named by `make check-data`, or one that training reads was
let through.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dept.config import complete as configs
from dept.config import extends
from dept.data_prep.check import check_corpus
from dept.data_prep.pool import Workers

SHARD, INDEX = "data/*/*/*/*/*/*.mds", "data/*/*/*/*/index.json"


def flip(path: Path, draw: random.Random) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Take away the end."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path: Path, draw: random.Random) -> None:
    """Take away the file."""
    path.unlink()


def empty(path: Path, draw: random.Random) -> None:
    """What is left after a loss of power on some file systems: zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def misname(path: Path, draw: random.Random) -> None:
    """Let an index name a shard that is not there."""
    content = json.loads(path.read_bytes())
    draw.choice(content["shards"])["raw_data"]["basename"] = "00000/shard.99999.mds"
    path.write_text(json.dumps(content))


def swap(path: Path, draw: random.Random) -> None:
    """Put another one of the same kind, of another folder, in its place."""
    others = [p for p in path.parents[4].rglob(path.name) if p.read_bytes() != path.read_bytes()]
    shutil.copy(draw.choice(others), path)


KINDS: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "a bit of a shard": (SHARD, flip),
    "a shard cut short": (SHARD, cut),
    "a shard of zeros": (SHARD, empty),
    "a shard that is missing": (SHARD, remove),
    "a shard of another source": (SHARD, swap),
    "an index cut short": (INDEX, cut),
    "an index that names a shard that is not there": (INDEX, misname),
    "an index of another source": (INDEX, swap),
    "statistics cut short": ("data/*/*/*/stats.json", cut),
    "statistics of another source": ("data/*/*/*/stats.json", swap),
    "counts cut short": ("data/*/*/*/counts.npy", cut),
    "a bit of a tokenizer": ("tokenizers/*/*/tokenizer.json", flip),
    "a tokenizer that is missing": ("tokenizers/*/*/tokenizer.json", remove),
}


def main(arguments: list[str] | None = None) -> int:
    """Run all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="multilingual")
    parser.add_argument("--tries", type=int, default=30, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, failed = random.Random(options.seed), False
    print(f"| damage to {options.corpus} | times tried | named by check-data | before training |")
    print("|---|---:|---:|---:|")
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(len(os.sched_getaffinity(0)), Console(stderr=True, quiet=True)) as pool,
    ):
        root = Path(folder)
        for kind in ("data", "tokenizers"):
            text = shutil.ignore_patterns("text", "words*")
            shutil.copytree(f"{kind}/{options.corpus}", root / kind / options.corpus, ignore=text)
        described = json.loads((root / "data" / options.corpus / "corpus.json").read_bytes())
        not_read = described["held_out"]  # of these training takes no counts
        for kind, (pattern, damage) in KINDS.items():
            found, refused = 0, 0
            for _ in range(options.tries):
                paths = sorted(root.glob(pattern))
                if pattern.endswith("counts.npy"):
                    paths = [path for path in paths if path.parts[-3] not in not_read]
                path = draw.choice(paths)
                whole = path.read_bytes()
                damage(path, draw)
                named = names(path, check_corpus(root, options.corpus, pool)[0])
                if not named:
                    print(f"not named: {kind}, {path.relative_to(root)}", file=sys.stderr)
                found += named
                refused += is_refused(root, options.corpus, path)
                path.write_bytes(whole)
            failed |= found < options.tries or refused < options.tries
            print(f"| {kind} | {options.tries} | {found} | {refused} |", flush=True)
    return int(failed)


def names(path: Path, sentences: list[str]) -> bool:
    """Whether a sentence names a file, or its folder of one source and tokenizer."""
    root, depth = ("tokenizers", 3) if "tokenizers" in path.parts else ("data", 4)
    folder = Path(*path.parts[: path.parts.index(root) + depth])
    return any(str(folder) in line for line in sentences)


def is_refused(root: Path, corpus: str, path: Path) -> bool:
    """Whether an experiment that reads a file is refused, in a sentence that names it."""
    tokenizer = path.relative_to(root).parts[3]
    is_global = "global" in (tokenizer, path.parent.name)
    experiment = "dept_trim" if is_global else "dept_spec_opt"
    overrides = [f"variables.corpus={corpus}", f"train_loader.root={root}"]
    config = extends.resolve(extends.load(f"yamls/{experiment}.yaml", overrides))
    try:
        configs.check(config)
    except ValueError as error:
        return names(path, [str(error)])
    print(f"let through: {path.relative_to(root)}", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
