"""A tokenizer of the tokens that a source holds: its ids are rows of the source's matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def trim(
    tokenizer: Mapping[str, Any], token_ids: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Reduce a tokenizer to some of its tokens.

    Text whose tokens are all kept is tokenized exactly as before:

    * A unigram tokenizer finds the most probable segmentation, which is still the best among fewer
      segmentations. A character without a piece costs the lowest score of all pieces minus 10, so
      that lowest score is kept too (as the score of the unknown token, which is otherwise not
      used). Otherwise spelling with bytes could become cheaper than pieces.
    * A BPE tokenizer merges pairs one after another. The tokens from which kept tokens are merged,
      and so all merges that lead to them, are kept too. All single characters, or all bytes with
      byte fallback, are also kept, since text would otherwise be lost. These additional tokens come
      after the requested ones; the source was never trained on them.

    Other text is spelled with shorter tokens in the place of tokens that are not kept. With BPE,
    text that could be encoded without loss still can be. A unigram tokenizer uses the unknown token
    for a character whose bytes are not all kept.

    Args:
        tokenizer: the parsed ``tokenizer.json``.
        token_ids: ids to keep, ascending; token ``token_ids[r]`` gets the id ``r``.

    Returns:
        ``(trimmed, extra)``: the new ``tokenizer.json``, and the ids in ``tokenizer`` of the
        additional tokens, which have the ids ``len(token_ids)``, ... in ``trimmed``.

    Raises:
        ValueError: the model of the tokenizer is neither unigram nor BPE, it is a BPE that marks
            parts of words, or its unknown token is not kept.
    """
    trimmed = deepcopy(dict(tokenizer)) | {"padding": None, "truncation": None}
    model = trimmed["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    added = {token["id"]: token for token in trimmed["added_tokens"]}
    if kind == "Unigram":
        kept = [*token_ids]
        _trim_unigram(model, kept)
    elif kind == "BPE":
        kept = _with_parts(model, token_ids)
        _trim_bpe(model, kept, added)
    else:
        raise ValueError(f"a tokenizer of type {kind} cannot be trimmed: Unigram and BPE can")
    rows = {i: row for row, i in enumerate(kept)}
    trimmed["added_tokens"] = [
        {**token, "id": rows[i]} for i, token in sorted(added.items()) if i in rows
    ]
    _renumber(trimmed.get("post_processor"), rows)
    return trimmed, kept[len(token_ids) :]


def _trim_unigram(model: dict[str, Any], kept: Sequence[int]) -> None:
    # Tokens added behind the pieces stay behind them: `tokenizers` numbers them on.
    pieces, unknown = model["vocab"], model.get("unk_id")
    model["vocab"] = [pieces[i] for i in kept if i < len(pieces)]
    if unknown is not None:
        if unknown not in kept:
            raise ValueError(f"the unknown token {unknown} is not among those to keep")
        model["unk_id"] = row = kept.index(unknown)
        model["vocab"][row] = [pieces[unknown][0], min(score for _, score in pieces)]


def _trim_bpe(
    model: dict[str, Any], kept: Sequence[int], added: Mapping[int, Mapping[str, Any]]
) -> None:
    string_of = {i: piece for piece, i in model["vocab"].items()}
    # Added tokens go into the vocabulary, or `tokenizers` would number them after it.
    row_of = {
        string_of[i] if i in string_of else added[i]["content"]: row for row, i in enumerate(kept)
    }
    model["vocab"] = row_of
    model["merges"] = [
        merge
        for merge in model["merges"]
        if {*_pair(merge), "".join(_pair(merge))} <= row_of.keys()
    ]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Both tokens of a merge, which is a string in older files and a list in newer ones."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_parts(model: Mapping[str, Any], token_ids: Sequence[int]) -> list[int]:
    """The ids, and after them those that text, or they themselves, are merged from."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"a BPE tokenizer with {key} cannot be trimmed")
    parts: dict[str, set[str]] = {}
    for merge in model["merges"]:
        left, right = _pair(merge)
        parts.setdefault(left + right, set()).update((left, right))
    string_of = {i: piece for piece, i in model["vocab"].items()}
    reached = {string_of[i] for i in token_ids if i in string_of}
    if model.get("byte_fallback"):
        reached |= {piece for piece in model["vocab"] if _BYTE.fullmatch(piece)}
    else:
        reached |= {piece for piece in model["vocab"] if len(piece) == 1}
    if model.get("unk_token") in model["vocab"]:
        reached.add(model["unk_token"])
    waiting = list(reached)
    while waiting:
        new = parts.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    held = set(token_ids)
    return [*token_ids, *sorted(i for p in reached if (i := model["vocab"][p]) not in held)]


def _renumber(step: Any, rows: Mapping[int, int]) -> None:
    """Renumber the special tokens that a post-processor adds, in place."""
    if isinstance(step, list):
        for inner in step:
            _renumber(inner, rows)
    elif isinstance(step, dict):
        if isinstance(step.get("ids"), list):  # of TemplateProcessing
            step["ids"] = [rows[i] for i in step["ids"]]
        for key, inner in step.items():
            if key in ("cls", "sep") and isinstance(inner, list):  # of BERT's and RoBERTa's
                step[key] = [inner[0], rows[inner[1]]]
            else:
                _renumber(inner, rows)
