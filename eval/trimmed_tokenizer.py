"""A tokenizer of the tokens that a source holds: its ids are rows of the source's matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any


def trim(
    tokenizer: Mapping[str, Any], token_ids: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Leave only some tokens of a tokenizer.

    A unigram tokenizer finds the most probable segmentation, and one that is the best among all is
    so among fewer: text that the whole tokenizer cuts into held tokens is cut alike. Other text is
    spelled with shorter tokens that are held, where the whole one has a token that is not.

    A BPE tokenizer merges pairs one after another, so it keeps what its tokens are merged from
    too; and all single characters (bytes, of a byte-level one), or text would vanish. Such tokens
    come after the rows: the source was never trained on them.

    Args:
        tokenizer: what its ``tokenizer.json`` holds.
        token_ids: ids to keep, ascending; token ``token_ids[r]`` gets the id ``r``.

    Returns:
        ``(trimmed, extra)``: what its ``tokenizer.json`` would hold, and the ids in ``tokenizer``
        of what it had to keep beside: the ids ``len(token_ids)``, ... in ``trimmed``.

    Raises:
        ValueError: the model of the tokenizer is neither unigram nor BPE, or its unknown token is
            not kept.
    """
    trimmed = deepcopy(dict(tokenizer))
    model = trimmed["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    added = {token["id"]: token for token in trimmed["added_tokens"]}
    if kind == "Unigram":
        kept = list(token_ids)
        pieces = [*model["vocab"]]
        model["vocab"] = [
            pieces[i] if i < len(pieces) else [added[i]["content"], 0.0] for i in kept
        ]
        if model.get("unk_id") is not None:
            if model["unk_id"] not in kept:
                raise ValueError(f"the unknown token {model['unk_id']} is not among those to keep")
            model["unk_id"] = kept.index(model["unk_id"])
    elif kind == "BPE":
        kept = _with_parts(model, token_ids)
        string_of = {i: piece for piece, i in model["vocab"].items()}
        row_of = {string_of[i]: row for row, i in enumerate(kept) if i in string_of}
        model["vocab"] = row_of
        model["merges"] = [
            merge
            for merge in model["merges"]
            if {*_pair(merge), "".join(_pair(merge))} <= {*row_of}
        ]
    else:
        raise ValueError(f"a tokenizer of type {kind} cannot be trimmed: Unigram and BPE can")
    rows = {i: row for row, i in enumerate(kept)}
    trimmed["added_tokens"] = [
        {**token, "id": rows[i]} for i, token in sorted(added.items()) if i in rows
    ]
    _renumber(trimmed.get("post_processor"), rows)
    return trimmed, kept[len(token_ids) :]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Both tokens of a merge, which is a string in older files and a list in newer ones."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_parts(model: Mapping[str, Any], token_ids: Sequence[int]) -> list[int]:
    """The ids, and after them those that they are merged from, directly or not."""
    parts: dict[str, set[str]] = {}
    for merge in model["merges"]:
        left, right = _pair(merge)
        parts.setdefault(left + right, set()).update((left, right))
    string_of = {i: piece for piece, i in model["vocab"].items()}
    reached = {string_of[i] for i in token_ids if i in string_of}
    reached |= {piece for piece in model["vocab"] if len(piece) == 1}
    waiting = list(reached)
    while waiting:
        new = parts.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    held = set(token_ids)
    return [*token_ids, *sorted(i for p in reached if (i := model["vocab"][p]) not in held)]


def _renumber(step: Any, rows: Mapping[int, int]) -> None:
    """Let the special tokens that a post-processor adds have their new ids, in place."""
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
