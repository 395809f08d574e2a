"""Reads and checks a corpus yaml: a key or value that is wrong is refused in one sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dept.data.corpus import GLOBAL
from dept.data_prep.corpus import (
    ClusterOptions,
    Corpus,
    HubOptions,
    NearCopyOptions,
    Source,
    SplitOptions,
    TokenizerOptions,
    format_of,
)
from dept.errors import DataError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
REMARKS = ("licence", "about", "text_bytes", "documents")  # for readers of the yaml; not used
KEYS = (
    "corpus",
    "sequence_length",
    "split",
    "near_copies",
    "tokenizers",
    "sources",
    "held_out",
    "part_bytes",
)
CHOICES = {"document": ("paragraph", "line", "file"), "bad_documents": ("refuse", "skip")}
CLUSTER_METHODS = ("tfidf", "unigram", "random")
PACKAGE_ONLY_OURS = ("split", "tokenizer", "bad_documents", "max_document_bytes")


def load_corpus(path: Path) -> Corpus:
    """Reads and checks a corpus yaml, with the one that it extends, if any.

    Raises:
        DataError: the file is missing or no yaml, a key is unknown or missing, a value is out of
            range.
    """
    content = _read(path)
    base = content.pop("extends", None) if isinstance(content, dict) else None
    try:
        if base is not None:
            content = _merged(_extended(path, base), content)
        return _corpus(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a corpus yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not yaml ({' '.join(str(error).split())}).") from None


def _extended(path: Path, base: Any) -> dict[str, Any]:
    """The content of the yaml that another one extends."""
    if not isinstance(base, str):
        raise DataError(f"extends is {base!r}: name one corpus yaml, beside this one.")
    content = _mapping(_read(path.parent / base), base, None)
    if "extends" in content:
        raise DataError(f"extends names {base}, which extends another one: name that one.")
    return dict(content)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, at all depths; any other value replaces the one of the base."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _corpus(content: Any) -> Corpus:
    content = _mapping(content, "a corpus yaml", KEYS)
    name = _name(content.get("corpus"), "corpus", reserved=("packages", "downstream"))
    split = _options(SplitOptions, content.get("split"), "split")
    tokenizers = _mapping(
        content.get("tokenizers"), "tokenizers", ("global", "own", "sample_bytes")
    )
    sizes = {k: content[k] for k in ("sequence_length", "part_bytes") if k in content}
    sizes |= {k: tokenizers[k] for k in ("sample_bytes",) if k in tokenizers}
    sizes = {key: _size(value, key) for key, value in sizes.items()}
    if sizes.get("sequence_length", 2) < 2:
        raise DataError("sequence_length is 1: a sample needs at least 2 tokens.")
    given, cluster = _without_cluster(content.get("sources"))
    sources, held_out = (
        tuple(
            _source(key, value, where == "held_out", split)
            for key, value in _mapping(entries, where, None).items()
        )
        for where, entries in (("sources", given), ("held_out", content.get("held_out")))
    )
    if not sources:
        raise DataError("sources is empty: name at least one, as in `en: {files: texts/en.txt}`.")
    twice = {s.name for s in sources} & {s.name for s in held_out}
    if twice:
        raise DataError(f"{twice.pop()} is both in sources and in held_out: rename one of them.")
    own, copies = tokenizers.get("own"), None
    if content.get("near_copies") is not None:
        copies = _options(NearCopyOptions, content["near_copies"], "near_copies")
        if not copies.threshold:
            raise DataError("near_copies.threshold is 0: write more, up to 1, or leave it out.")
    return Corpus(
        corpus=name,
        sources=sources,
        held_out=held_out,
        cluster=cluster,
        split=split,
        near_copies=copies,
        global_tokenizer=_tokenizer(tokenizers.get("global"), "tokenizers.global"),
        own_tokenizer=None if own is None else _own_tokenizer(own, "tokenizers.own"),
        **sizes,
    )


def _without_cluster(sources: Any) -> tuple[Any, ClusterOptions | None]:
    """The sources without the keys of a cluster, and the options of the cluster if there is one."""
    sources = _mapping(sources, "sources", None)
    names = [n for n, v in sources.items() if isinstance(v, Mapping) and "k" in v]
    if not names:
        return sources, None
    name = names[0]
    if len(sources) > 1 or not sources[name].get("files"):
        raise DataError(
            f"sources.{name} has k, so its clusters are the sources: give it `files`, and make it "
            "the only entry of sources."
        )
    keys = [f.name for f in dataclasses.fields(ClusterOptions)]
    own = {key: value for key, value in sources[name].items() if key in keys}
    options = _options(ClusterOptions, own, f"sources.{name}")
    if options.k < 2:
        raise DataError(f"sources.{name}.k is {options.k}: give it 2 clusters or more.")
    if options.method not in CLUSTER_METHODS:
        raise DataError(
            f"sources.{name}.method is {options.method!r}: write one of "
            f"{', '.join(CLUSTER_METHODS)}."
        )
    return {name: {k: v for k, v in sources[name].items() if k not in keys}}, options


def _source(name: Any, content: Any, held_out: bool, split: SplitOptions) -> Source:
    name = _name(name, "the name of a source", reserved=(GLOBAL, "text", "clusters"))
    from dept.data_prep.embedded.packages import SOURCE_KEYS, is_package

    if isinstance(content, Mapping) and is_package(content):
        ours = PACKAGE_ONLY_OURS
        content = _mapping(content, f"source {name}", (*ours, *sorted(SOURCE_KEYS)))
        package = {k: v for k, v in content.items() if k not in ours + REMARKS}
        content = {k: v for k, v in content.items() if k in ours} | {"package": _sized(package)}
    else:
        ours = [f.name for f in dataclasses.fields(Source) if f.name not in ("name", "held_out")]
        content = _mapping(content, f"source {name}", (*ours, *REMARKS))
        content = {k: v for k, v in content.items() if k in ours}
    values = _values(Source, content, name)
    files = values.get("files") or ()
    values["files"] = (files,) if isinstance(files, str) else tuple(files)
    if values.get("hub") is not None:
        values["hub"] = _options(HubOptions, values["hub"], f"{name}.hub")
        if not values["hub"].name:
            raise DataError(f"{name}.hub has no name: write hub: {{name: owner/data_set}}.")
    kinds = [k for k in ("files", "hub", "package") if values.get(k)]
    if len(kinds) != 1:
        raise DataError(
            f"source {name} has {' and '.join(kinds) or 'no text'}: "
            "give it exactly one of files, hub and package."
        )
    formats = {format_of(Path(str(pattern)), name) for pattern in values["files"]}
    if ".txt" in formats and values.get("filter"):
        raise DataError(f"{name}.filter: a .txt has no columns to filter by; leave the filter out.")
    for key, choices in CHOICES.items():
        if values.get(key, choices[0]) not in choices:
            raise DataError(f"{name}.{key} is {values[key]!r}: write one of {', '.join(choices)}.")
    values["filter"] = dict(_mapping(values.get("filter"), f"{name}.filter", None))
    values["split"] = _options(SplitOptions, values.get("split"), f"{name}.split", split)
    if values.get("tokenizer") is not None:
        if held_out:
            raise DataError(f"{name}.tokenizer: a held-out source has the global one alone.")
        values["tokenizer"] = _own_tokenizer(values["tokenizer"], f"{name}.tokenizer")
    return Source(name=name, held_out=held_out, **values)


def _sized(package: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a source from packages, its limits in bytes."""
    sizes = ("max_member_bytes", "max_archive_bytes")
    content = {k: _size(v, k) if k in sizes else v for k, v in package.items()}
    if isinstance(content.get("packages"), list):
        content["packages"] = [
            _sized(part) if isinstance(part, Mapping) else part for part in content["packages"]
        ]
    return content


def _own_tokenizer(content: Any, where: str) -> TokenizerOptions:
    options = _tokenizer(content, where)
    if options.universal:
        raise DataError(f"{where}.universal: it is for tokenizers.global, which has all sources.")
    return options


def _tokenizer(content: Any, where: str) -> TokenizerOptions:
    options = _options(TokenizerOptions, content, where)
    if options.path and options.hub:
        raise DataError(f"{where} has both path and hub: keep one.")
    if options.universal and (options.path or options.hub):
        raise DataError(f"{where}.universal: a tokenizer from elsewhere is not trained; drop one.")
    if options.path or options.hub:
        return options
    size = 8192 if options.vocab_size is None else options.vocab_size
    if size < 512:
        raise DataError(
            f"{where}.vocab_size is {size}: it must be at least 512, "
            "for 256 bytes, 4 special tokens and some pieces."
        )
    return dataclasses.replace(options, vocab_size=size)


def _options(cls: type, content: Any, where: str, defaults: Any = None) -> Any:
    """Builds an options dataclass from a mapping."""
    content = _mapping(content, where, tuple(f.name for f in dataclasses.fields(cls)))
    return dataclasses.replace(defaults or cls(), **_values(cls, content, where))


def _values(cls: type, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a mapping with the types that the annotations of a dataclass ask for."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    values = {}
    for key, value in content.items():
        kind, place = kinds[key], f"{where}.{key}"
        if value is None:
            if kind in ("int", "float", "str", "bool"):
                raise DataError(f"{place} has no value: give it one or leave it out.")
        elif kind.startswith("int"):
            value = _size(value, place)
        elif kind.startswith("float"):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise DataError(f"{place} is {value!r}: write a number from 0 to 1.")
            value = float(value)
        elif kind == "bool" and not isinstance(value, bool):
            raise DataError(f"{place} is {value!r}: write true or false.")
        elif kind.startswith("str") and not isinstance(value, str):
            raise DataError(f"{place} is {value!r}: write a string, in quotes.")
        values[key] = value
    return values


def _mapping(content: Any, where: str, keys: tuple[str, ...] | None) -> Mapping[Any, Any]:
    """A mapping without its underscore keys, all of them in `keys` (None: any)."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise DataError(f"{where} is {content!r}: write a mapping of key: value.")
    content = {k: v for k, v in content.items() if not str(k).startswith("_")}
    unknown = [k for k in content if keys is not None and k not in keys]
    if unknown:
        raise DataError(
            f"{where} has the unknown key {unknown[0]!r}: write one of {', '.join(keys or ())}."
        )
    return content


def _name(value: Any, what: str, reserved: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        raise DataError(f"{what} is {value}: yaml takes no, yes, on, off for truth; quote it.")
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise DataError(f"{what} is {value!r}: use letters, digits, dot, dash and underscore.")
    if value in reserved:
        raise DataError(f"{what} is {value!r}, which names something else: choose another.")
    return value


def _size(value: Any, where: str) -> int:
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(value))
    try:
        if not match or isinstance(value, bool):
            raise ValueError
        number = float(match[1]) * UNITS[match[2].lower()]
        if number != int(number) or number < 1:
            raise ValueError
    except (KeyError, ValueError):
        raise DataError(
            f"{where} is {value!r}: write a positive whole number, or a size like 64kB, 20MB, 2GB."
        ) from None
    return int(number)
