"""The options of a corpus yaml, each beside its default (corpus_yaml.py reads and checks it).

A minimal example:

    corpus: mine
    sources:
      en: {files: texts/en.txt}
      it: {files: texts/it.txt}

Sources that are not given are found: a source with `k` is divided into k clusters of documents,
which are the sources (here `part0` to `part7`). It must be the only entry of `sources:`.

    sources:
      part: {k: 8, method: tfidf, files: texts/*.jsonl}

A corpus that differs from another in a few keys names it; mappings are merged, other values
replaced:

    extends: languages.yaml
    corpus: languages_universal
    tokenizers: {global: {universal: true}}

Keys that start with an underscore are free, for yaml anchors. Sizes are bytes, or strings like
64kB, 20MB, 1.5GB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dept.errors import DataError

FORMATS = (".txt", ".jsonl", ".parquet")  # .txt and .jsonl also with .gz or .zst after it


@dataclass(frozen=True)
class SplitOptions:
    """`split:` of the corpus, and of a source if it differs."""

    val_fraction: float = 0.03  # share of the documents, drawn by their hash, that is validation
    val_samples: int = 64  # the share is raised, to at most 0.2, until there are about this many
    train_bytes: int | None = None  # stop after this much training text; null takes all
    val_bytes: int | None = 16 * 10**6  # take no more validation text than this; null takes all


@dataclass(frozen=True)
class TokenizerOptions:
    """`tokenizers.global`, `tokenizers.own`, and `tokenizer` of a source."""

    vocab_size: int | None = None  # ids in all; 8192. With path or hub: pad the embedding to this
    path: str | None = None  # directory of a transformers tokenizer to take instead of training one
    hub: str | None = None  # the same from the Hugging Face hub
    temperature: float = 0.3  # global only: a source weighs (bytes of its text) ** temperature
    # global only: trained on all sources, held-out ones too, each with equal weight (arXiv
    # 2506.10766); temperature: 0 gives equal weights without held-out ones
    universal: bool = False


@dataclass(frozen=True)
class HubOptions:
    """`hub:` of a source: a data set of the Hugging Face hub, read in streaming mode."""

    name: str = ""  # required: owner/name, or the path of a local data set
    config: str | None = None  # second argument of datasets.load_dataset
    split: str = "train"  # where training text comes from
    val_split: str | None = None  # where validation text comes from; null draws it from `split`
    revision: str | None = None  # commit or tag of the data set
    data_files: Any = None  # as in datasets.load_dataset


@dataclass(frozen=True)
class NearCopyOptions:
    """`near_copies:` of the corpus: documents that resemble an earlier one of any source are left
    out; see data_prep/near_copies.py."""

    threshold: float = 0.8  # share of the runs of two documents that are equal (Jaccard index)
    words: int = 5  # words of a run; characters in Chinese and Japanese


@dataclass(frozen=True)
class Source:
    """One entry of `sources:` or `held_out:`; it has exactly one of `files`, `hub` and
    `package`.

    Attributes:
        name: name of the source.
        held_out: whether it is an entry of `held_out:`.
        hub: data set of the Hugging Face hub.
        split: how its validation text is chosen, and how much text is taken.
    """

    name: str
    held_out: bool
    files: tuple[str, ...] = ()  # a path or glob, or a list: .txt .jsonl (.gz .zst) .parquet
    hub: HubOptions | None = None
    package: Mapping[str, Any] | None = None  # keys of embedded/packages.py, beside the ones here
    document: str = "paragraph"  # what one document of a .txt is: paragraph, line or file
    column: str = "text"  # where .jsonl, .parquet and hub rows have their text; a.b for nested
    filter: Mapping[str, Any] = field(default_factory=dict)  # column: value or list of values
    bad_documents: str = "refuse"  # of text that is no UTF-8, has NUL or is too long; or skip
    max_document_bytes: int = 8 * 10**6  # a longer one is bad; memory grows to 100 bytes a byte
    max_unpacked_bytes: int = 100 * 10**9  # of a .gz or .zst file: one that holds more is refused
    split: SplitOptions = SplitOptions()
    tokenizer: TokenizerOptions | None = None  # its own, where it differs from tokenizers.own


@dataclass(frozen=True)
class ClusterOptions:
    """Keys of a source that is divided into clusters, beside its own."""

    k: int = 0  # required: number of clusters
    # balanced k-means of tf-idf vectors, or unigram: EM of token counts; or random, for a control:
    # each document in a part drawn by its hash and the seed
    method: str = "tfidf"
    balanced: bool = True  # clusters of equal bytes, or each document in its best one; not random
    fit_bytes: int = 32 * 10**6  # text of the sample that clusters are fitted to
    seed: int = 17  # of first centres, or of random parts


@dataclass(frozen=True)
class Corpus:
    """A corpus yaml with every default filled in.

    Attributes:
        corpus: name of the corpus.
        sources: sources to train on; with `cluster`, the one that is divided into them.
        cluster: how the source is divided; None where sources are given.
        held_out: sources that are prepared, but not trained on.
        split: default of the sources.
        global_tokenizer: `tokenizers.global`.
    """

    corpus: str
    sources: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()
    cluster: ClusterOptions | None = None
    sequence_length: int = 2048  # tokens of a sample
    split: SplitOptions = SplitOptions()
    global_tokenizer: TokenizerOptions = TokenizerOptions(vocab_size=8192)
    own_tokenizer: TokenizerOptions | None = None  # null makes no tokenizers of single sources
    near_copies: NearCopyOptions | None = None  # null keeps near copies; {} takes the defaults
    sample_bytes: int = 50 * 10**6  # `tokenizers.sample_bytes`: text of a source to train them on
    part_bytes: int = 64 * 10**6  # text of a part: the unit of parallel work and of resumption

    def own(self, source: Source) -> TokenizerOptions | None:
        """Options of the tokenizer of this source alone, or None when it has none."""
        return None if source.held_out else source.tokenizer or self.own_tokenizer

    def recipe(self) -> dict[str, Any]:
        """Everything that decides what the prepared data is, as JSON."""
        content = dataclasses.asdict(self)
        for source in (*content["sources"], *content["held_out"]):
            del source["max_unpacked_bytes"]  # refuses, or changes nothing
        if self.cluster is None:
            del content["cluster"]
        if not self.global_tokenizer.universal:  # data made before it was an option stays valid
            del content["global_tokenizer"]["universal"]
        owns = [content["own_tokenizer"], *(s["tokenizer"] for s in content["sources"])]
        for own in filter(None, owns):
            del own["universal"]
        return content


def format_of(path: Path, source: str) -> str:
    """Format of a file by its name without .gz or .zst: one of FORMATS.

    Args:
        path: path of the file.
        source: name of the source, for the error.

    Raises:
        DataError: another one.
    """
    packed = path.suffix in (".gz", ".zst")
    kind = Path(path.stem).suffix if packed else path.suffix
    if kind not in FORMATS or (packed and kind == ".parquet"):
        raise DataError(
            f"{source}.files: {path} has an unknown format: "
            "it must end in .txt or .jsonl (also with .gz or .zst), or .parquet."
        )
    return kind
