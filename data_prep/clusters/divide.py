"""Stage 0 of a corpus whose sources are clusters: a model is fitted, and documents are divided.

`clusters/model/` has the model, which is fitted to a sample. `clusters/3/00001-00000.jsonl.zst` has
the documents of cluster 3 from part 0 of input file 1, and `clusters/parts/00001-00000.json`,
written after all files of the part, how many there are and where the reader was. A killed run
resumes after the last such record.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dept.data_prep.clusters.models import FITS, load
from dept.data_prep.collect import document_draw
from dept.data_prep.corpus import Corpus, Source
from dept.data_prep.files import WORK, publish_directory, read_json, text_part, write_json
from dept.data_prep.local_files import FileReader, find_files
from dept.data_prep.pool import Task, Workers
from dept.errors import DataError

FOLDER = "clusters"
TOGETHER = 256  # documents that are scored in one call


def sources_of(corpus: Corpus, directory: Path) -> tuple[Source, ...]:
    """The sources that a corpus has: those of its yaml, or a source for each cluster.

    Args:
        corpus: as in the yaml.
        directory: `data/<corpus>`.
    """
    if corpus.cluster is None:
        return corpus.sources
    (text,) = corpus.sources
    folder = directory.resolve() / FOLDER
    return tuple(
        dataclasses.replace(
            text,
            name=f"{text.name}{number}",
            files=(str(folder / str(number) / "*.jsonl.zst"),),
            column="text",
            filter={},
        )
        for number in range(corpus.cluster.k)
    )


def divide(pool: Workers, corpus: Corpus, folders: tuple[Path, ...], directory: Path) -> None:
    """Divide the documents of a corpus among its clusters, from where an earlier run stopped.

    Args:
        pool: of processes; each input file is a task.
        corpus: as in the yaml, with its `cluster`.
        folders: where relative paths of the yaml are looked for.
        directory: `data/<corpus>`.

    Raises:
        DataError: a file cannot be read, or there are fewer documents than clusters.
    """
    (text,), options = corpus.sources, corpus.cluster
    assert options is not None
    folder, files = directory / FOLDER, find_files(text, folders)
    sizes = sum(path.stat().st_size for path in files)
    if not (folder / "model").exists():
        pool.run("0/3 fit clusters", fit, [(corpus, files, directory)], sizes)
    arguments = [(corpus, path, number, folder) for number, path in enumerate(files)]
    pool.run("0/3 divide documents", divide_file, arguments, sizes)
    for number in range(options.k):
        if not any((folder / str(number)).glob("*.jsonl.zst")):
            raise DataError(
                f"Cluster {number} of {text.name} has no documents: set a smaller "
                f"sources.{text.name}.k, and delete {directory}."
            )


def fit(task: Task, corpus: Corpus, files: list[Path], directory: Path) -> None:
    """Fit the model of the clusters to a sample, which is drawn by the hashes of documents.

    Args:
        task: reports progress, in bytes read.
        corpus: as in the yaml, with its `cluster`.
        files: of all documents.
        directory: `data/<corpus>`.

    Raises:
        DataError: there are fewer documents than clusters.
    """
    (text,), options = corpus.sources, corpus.cluster
    assert options is not None
    reader = FileReader(text, files)
    kept: list[tuple[float, str]] = []  # a heap with the largest draw first
    size = 0
    for document in reader:
        task.advance(reader.consumed())
        draw = document_draw(document.data)[1]
        if size >= options.fit_bytes and -draw <= kept[0][0]:
            continue
        heapq.heappush(kept, (-draw, document.text))
        size += len(document.data)
        while size - len(kept[0][1].encode()) >= options.fit_bytes:
            size -= len(heapq.heappop(kept)[1].encode())
    texts = [text for _, text in sorted(set(kept), reverse=True)]
    if len(texts) < 2 * options.k:
        raise DataError(
            f"Source {text.name}: {len(texts)} different documents are too few for "
            f"{options.k} clusters: set a smaller k, or smaller documents (`document: line`)."
        )
    model = FITS[options.method](texts, options.k, options.seed, balanced=options.balanced)
    temporary = directory / WORK / "model"
    temporary.mkdir(parents=True, exist_ok=True)
    model.save(temporary)
    publish_directory(temporary, directory / FOLDER / "model")
    task.advance(reader.total(), last=True)


def divide_file(task: Task, corpus: Corpus, path: Path, number: int, folder: Path) -> None:
    """Write the documents of one file to the clusters they belong to.

    Args:
        task: reports progress, in bytes read.
        corpus: as in the yaml, with its `cluster`.
        path: the file.
        number: its place among the files.
        folder: `data/<corpus>/clusters`.
    """
    (text,), options = corpus.sources, corpus.cluster
    assert options is not None
    records = folder / "parts"
    part, position, ended = 0, None, False
    while (record := read_json(records / f"{number:05}-{part:05}.json")) is not None:
        part, position, ended = part + 1, record["position"], record["ended"]
    model = load(folder / "model")
    reader = FileReader(text, [path], position)
    stream = iter(reader)
    while not ended:
        name = f"{number:05}-{part:05}"
        with ExitStack() as opened:
            parts = [
                opened.enter_context(text_part(folder / str(cluster) / f"{name}.jsonl.zst"))
                for cluster in range(options.k)
            ]
            while not ended and sum(p.bytes for p in parts) < corpus.part_bytes:
                documents = list(itertools.islice(stream, TOGETHER))
                ended = len(documents) < TOGETHER
                if not documents:
                    break
                scores = model.scores([d.text for d in documents]) - model.prices
                for document, cluster in zip(documents, scores.argmax(axis=1), strict=True):
                    parts[cluster].write(document.text, len(document.data))
                task.advance(reader.consumed())
        record = {
            "file": str(path),
            "documents": [p.documents for p in parts],
            "bytes": [p.bytes for p in parts],
            "position": reader.position(),
            "ended": ended,
        }
        write_json(records / f"{name}.json", record)
        part += 1
    task.advance(reader.total(), last=True)


def counts_by_file(folder: Path) -> dict[str, list[int]]:
    """How many documents of each input file are in each cluster.

    Args:
        folder: `data/<corpus>/clusters`.
    """
    found: dict[str, Any] = {}
    for path in sorted((folder / "parts").glob("*.json")):
        record = read_json(path)
        before = found.get(record["file"], [0] * len(record["documents"]))
        found[record["file"]] = [a + b for a, b in zip(before, record["documents"], strict=True)]
    return found
