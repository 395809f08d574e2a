"""Prepares a corpus: text -> tokenizers, MDS shards, statistics.

    python data_prep/prepare.py data_prep/corpora/multilingual.yaml [--workers N] [--root .]

Three stages, each resumable, all parallel: documents are collected and split (collect.py), and
near copies left out if the yaml wants it (near_copies.py); tokenizers trained (train_tokenizer.py);
text tokenized (shards.py). Before them, documents of sources that are not given are divided into
clusters (clusters/). Results depend on the yaml and the text alone, not on the number of workers or
on interruptions. dept/data/corpus.py documents the output, data_prep/corpus.py the yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from rich.console import Console

from dept import terminal
from dept.data.corpus import GLOBAL, SPLITS, PreparedSource, read_corpus, read_source
from dept.data.shard_files import read_index, refuse_missing
from dept.data.tokenizer_files import tokenizer_hash
from dept.data_prep.clusters.divide import divide, sources_of
from dept.data_prep.collect import collect, part_path
from dept.data_prep.corpus import Corpus, Source, TokenizerOptions
from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.documents import fetch_package, open_source, packages_of
from dept.data_prep.files import GATHERED, WORK, read_json, write_json
from dept.data_prep.near_copies import without_near_copies
from dept.data_prep.pool import Workers
from dept.data_prep.recipe import check_recipe
from dept.data_prep.shards import finish, write_part
from dept.data_prep.summary import summary_table
from dept.data_prep.train_tokenizer import (
    count_words,
    describe_tokenizer,
    train_tokenizer,
    words_path,
)
from dept.errors import DataError
from dept.log import log


class Preparation:
    """The preparation of one corpus in three stages.

    Args:
        corpus: what to prepare.
        folders: where relative paths of the yaml are looked for.
        root: directory of `data/` and `tokenizers/`.
        workers: processes; 0 for one a core.
        console: for progress and the summary.
    """

    def __init__(
        self, corpus: Corpus, folders: tuple[Path, ...], root: Path, workers: int, console: Console
    ):
        self.given = corpus
        self.folders = folders
        self.root = root
        self.workers = workers
        self.console = console
        self.data = root / "data" / corpus.corpus
        self.tokenizers = root / "tokenizers" / corpus.corpus
        self.corpus = dataclasses.replace(corpus, sources=sources_of(corpus, self.data))
        self.sources = self.corpus.sources + corpus.held_out

    def run(self) -> bool:
        """Runs the stages that are not yet complete.

        Returns:
            Whether there was anything to do.

        Raises:
            DataError: another preparation runs, the yaml has changed, or a source cannot be used.
        """
        with self._lock():
            check_recipe(self.data, self.tokenizers, self.given, self.folders)
            if self._finished():
                return False
            self._sweep()
            with Workers(self.workers, self.console) as pool:
                if self.given.cluster:
                    divide(pool, self.given, self.folders, self.data)
                collected = self._collect(pool)
                tokenizers = self._train(pool, collected)
                self._shard(pool, collected, tokenizers)
            write_json(
                self.data / "corpus.json",
                {
                    "corpus": self.corpus.corpus,
                    "sequence_length": self.corpus.sequence_length,
                    "sources": [s.name for s in self.corpus.sources],
                    "held_out": [s.name for s in self.corpus.held_out],
                    "tokenizers": {
                        name: {k: t[k] for k in ("path", "hash", "vocab_size")}
                        for name, t in tokenizers.items()
                    },
                },
            )
            self._sweep()
        return True

    def _lock(self) -> AcquireReturnProxy[FileLock]:
        """Holds the corpus for this preparation."""
        path = self.data / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(path).acquire(blocking=False)
        except Timeout:
            raise DataError(
                f"Another preparation of {self.data} is running (it holds {path}): "
                "wait for it, or stop it and run this again."
            ) from None

    def tokenizers_of(self, source: Source) -> list[str]:
        """Names of the tokenizers that a source is tokenized with."""
        return [GLOBAL, source.name] if self.corpus.own(source) else [GLOBAL]

    def _finished(self) -> bool:
        try:
            corpus = read_corpus(self.root, self.corpus.corpus)
        except DataError:
            return False
        return all(
            _is_whole(corpus.source, source.name, tokenizer)
            for source in self.sources
            for tokenizer in self.tokenizers_of(source)
        )

    def _sweep(self) -> None:
        """Removes unfinished files of a killed run."""
        for folder in (self.data, self.tokenizers):
            shutil.rmtree(folder / WORK, ignore_errors=True)
            for path in folder.rglob(".writing-*"):
                path.unlink(missing_ok=True)

    def _collect(self, pool: Workers) -> dict[str, dict[str, Any]]:
        """Stage 1; returns collected.json of each source."""
        options, names = self.corpus.near_copies, [s.name for s in self.sources]
        if not all(_collected(self.data / name) for name in names):
            self._gather(pool, self.data / GATHERED if options else self.data)
            if options:
                without_near_copies(pool, names, self.data / GATHERED, self.data, options)
        shutil.rmtree(self.data / GATHERED, ignore_errors=True)
        return {name: _collected(self.data / name) for name in names}

    def _gather(self, pool: Workers, folder: Path) -> None:
        """Writes the text of each source into the folder."""
        todo = [s for s in self.sources if not _collected(folder / s.name)]
        cache = self.root / "data" / "packages"
        totals = [open_source(s, self.folders, cache).total() for s in todo]
        total = None if None in totals else sum(t or 0 for t in totals)
        found = [(key, s.name, part) for s in todo for key, part in packages_of(s).items()]
        packages = {key: (name, part, cache) for key, name, part in found}
        pool.run("1/3 fetch packages", fetch_package, list(packages.values()), None)
        arguments = [(self.corpus, s, folder / s.name, self.folders, cache) for s in todo]
        pool.run("1/3 collect text", collect, arguments, total)

    def _train(self, pool: Workers, collected: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Stage 2; returns name -> path (relative to the root), hash, eos_id, special_ids,
        vocab_size."""
        sizes = {
            s.name: {"path": self.data / s.name, "bytes": collected[s.name]["train"]["bytes"]}
            for s in self.sources
        }
        trained_on = [s.name for s in self.corpus.sources]
        everything = list(sizes) if self.corpus.global_tokenizer.universal else trained_on
        owns = {s.name: own for s in self.corpus.sources if (own := self.corpus.own(s))}
        options = {GLOBAL: self.corpus.global_tokenizer, **owns}
        names = {GLOBAL: everything, **{name: [name] for name in owns}}
        texts = {name: {s: sizes[s] for s in of} for name, of in names.items()}
        todo = [n for n in options if not (self.tokenizers / n).exists()]
        trained = [n for n in todo if not (options[n].path or options[n].hub)]
        words = sorted(
            {s for n in trained for s in texts[n] if not words_path(sizes[s]["path"]).exists()}
        )
        pool.run(
            "2/3 count words",
            count_words,
            [(sizes[s]["path"], collected[s], self.corpus.sample_bytes) for s in words],
            sum(sizes[s]["bytes"] for s in words),
        )
        pool.run(
            "2/3 train tokenizers",
            train_tokenizer,
            [(self.tokenizers / n, self._resolve(options[n]), texts[n]) for n in todo],
            sum(source["bytes"] for n in todo for source in texts[n].values()),
        )
        tokenizers = {}
        for name, option in options.items():
            path = self.tokenizers / name
            facts = describe_tokenizer(path, option)
            wanted = option.vocab_size or 0
            if name in trained and facts["vocab_size"] < wanted:
                self.console.print(
                    f"Tokenizer {name} has {facts['vocab_size']} ids instead of {wanted}: "
                    "its text has no more pieces.",
                    highlight=False,
                )
            relative = path.relative_to(self.root).as_posix()
            tokenizers[name] = {"path": relative, "hash": tokenizer_hash(path), **facts}
        self._same_tokenizers(tokenizers)
        return tokenizers

    def _resolve(self, options: TokenizerOptions) -> TokenizerOptions:
        """Options with `path` found in one of the folders."""
        for folder in self.folders:
            if options.path and (folder / options.path).is_dir():
                return dataclasses.replace(options, path=str(folder / options.path))
        return options

    def _same_tokenizers(self, tokenizers: dict[str, dict[str, Any]]) -> None:
        """Refuses tokenizers other than those of the existing shards."""
        before = read_json(self.data / "tokenizers.json")
        for name, facts in (before or {}).items():
            if tokenizers[name] != facts:
                raise DataError(
                    f"{self.tokenizers / name} is not the tokenizer that {self.data} was begun "
                    f"with: put it back, or delete {self.data} to make the data again."
                )
        if not before:
            write_json(self.data / "tokenizers.json", tokenizers)

    def _shard(
        self, pool: Workers, collected: dict[str, Any], tokenizers: dict[str, dict[str, Any]]
    ) -> None:
        """Stage 3."""
        todo: list[tuple[int, tuple]] = []
        pairs: list[tuple] = []
        length = self.corpus.sequence_length
        for source in self.sources:
            for name in self.tokenizers_of(source):
                directory = self.data / source.name / name
                if _is_whole(read_source, directory):
                    continue
                facts, summary = {**tokenizers[name], "name": name}, collected[source.name]
                # Validation is one part, so that it loses one tail; training is as many as it has.
                texts = {("val", "00000"): summary["val"]["parts"]}
                texts |= {("train", f"{n:05}"): [n] for n in summary["train"]["parts"]}
                for (split, part), numbers in texts.items():
                    target = directory / split / part
                    if not _part_is_whole(target, facts["hash"]):
                        shutil.rmtree(target, ignore_errors=True)
                        files = [part_path(self.data / source.name, split, n) for n in numbers]
                        tokenizer = {**facts, "path": self.root / facts["path"]}
                        size = summary[split]["bytes"] * len(numbers)
                        size //= len(summary[split]["parts"])
                        todo.append((size, (files, tokenizer, length, target)))
                parts = {split: [p for s, p in texts if s == split] for split in SPLITS}
                pairs.append((directory, source.name, facts, length, parts))
        todo.sort(key=lambda task: -task[0])  # long ones first, so that cores end together
        pool.run("3/3 tokenize", write_part, [t for _, t in todo], sum(s for s, _ in todo))
        for pair in pairs:
            finish(*pair)


def _collected(directory: Path) -> Any:
    return read_json(directory / "text" / "collected.json")


def _is_whole(read: Callable[..., PreparedSource], *arguments: Any) -> bool:
    """Whether a prepared source can be read and has all its shards."""
    try:
        for index in read(*arguments).indexes.values():
            refuse_missing(index)
    except DataError:
        return False
    return True


def _part_is_whole(directory: Path, tokenizer: str) -> bool:
    """False where a part is not yet there, was damaged and removed, or is of another tokenizer."""
    try:
        refuse_missing(read_index(directory, "prepare it"))
    except DataError:
        return False
    part = read_json(directory / "part.json")
    return (
        part is not None
        and part.get("tokenizer", tokenizer) == tokenizer
        and (directory / "counts.npy").exists()
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Text -> tokenizers, MDS shards and statistics; resumable."
    )
    parser.add_argument("corpus", type=Path, help="corpus yaml")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    parser.add_argument("--root", type=Path, default=Path(), help="where data/ and tokenizers/ go")
    options = parser.parse_args(arguments)
    console = Console()
    start = time.monotonic()
    try:
        corpus = load_corpus(options.corpus)
        folders = (options.corpus.resolve().parent, Path.cwd())
        preparation = Preparation(corpus, folders, options.root, options.workers, console)
        worked = preparation.run()
    except DataError as error:
        log.error(f"error: {error}")
        return 1
    except OSError as error:
        log.error(f"error: {error}; correct it and run the same command again.")
        return 1
    except KeyboardInterrupt:
        log.error("stopped; the same command resumes from here.")
        return 130
    if worked:
        terminal.show(summary_table(options.root, corpus.corpus), keys=2, console=console)
    done = "ready" if worked else "complete, nothing to do"
    seconds = time.monotonic() - start
    console.print(f"{preparation.data} is {done} ({seconds:.1f} s).", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
