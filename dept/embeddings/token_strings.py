"""Strings that identify a token in every tokenizer, and how a vocabulary spells a text.

Tokenizers write the same token in different ways: a space is a space in the ones that data
preparation trains, U+2581 in mT5's, and a code for a byte in GPT-NeoX's. Here a token is its text,
so that equal strings are equal tokens. A token without text has a string that begins with MARK.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dept.data.tokenizer_files import tokenizer_hash

MARK = "\ufdd0"  # a Unicode noncharacter: no text holds it
# Special tokens by their role; a token with several roles has the first of them.
ROLES = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Spelling = tuple[list[int], float]


def is_text(string: str) -> bool:
    """Whether it is a text that other tokens can spell, not a special token or part of a letter."""
    return bool(string) and not string.startswith(MARK)


def strings_of(directory: str | Path, vocab_size: int | None = None) -> list[str]:
    """The string of each id of a tokenizer, all different.

    The string of a token is its text, including spaces. A special token is MARK and its name in
    ``ROLES``, or its own name if it has none of these roles. A byte that is not text is MARK and
    ``<0xE4>``, for its value. Ids without a token, and tokens with the text of an earlier one, have
    a string that no other tokenizer has.

    Args:
        directory: folder of a transformers tokenizer with ``tokenizer.json``: unigram or BPE,
            plain, metaspace, byte-level, or with byte fallback.
        vocab_size: rows of its embedding, if there are more rows than ids.

    Raises:
        ValueError: there is no ``tokenizer.json``, or ``vocab_size`` is less than its ids.
    """
    digest = tokenizer_hash(directory)
    content = json.loads((Path(directory) / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    pieces = {i: s for s, i in vocab.items()} if isinstance(vocab, dict) else {}
    pieces = pieces or {i: piece for i, (piece, _) in enumerate(vocab)}
    texts = _texts(pieces, content)
    roles = _roles(Path(directory) / "tokenizer_config.json")
    for token in content["added_tokens"]:
        name = token["content"]
        texts[token["id"]] = MARK + roles.get(name, name) if token["special"] else name
    ids = max(texts) + 1
    size = ids if vocab_size is None else vocab_size
    if size < ids:
        raise ValueError(
            f"{directory} has {ids} ids, which an embedding of {size} rows cannot hold"
        )
    id_of: dict[str, int] = {}
    for i in sorted(texts):
        id_of.setdefault(texts[i], i)
    return [
        texts[i] if i in texts and id_of[texts[i]] == i else f"{MARK}id {i} of {digest[:12]}"
        for i in range(size)
    ]


def speller(tokens: Sequence[str], counts: Sequence[float]) -> Callable[[str], Spelling | None]:
    """Make a function that spells a text in the most probable way under the counts of tokens.

    It is the segmentation of a unigram tokenizer, but needs no tokenizer. No space is added in
    front of a text, and only tokens that occurred are used.

    Args:
        tokens: string of each row.
        counts: occurrences of each token.

    Returns:
        A function that returns ``(rows, log_count)`` for a text, or ``None`` if it cannot be
        spelled. ``log_count`` is ln(n * p_1 * .. * p_m), the expected count of the text among the n
        tokens; it is ln(count) if one token spells it.
    """
    total = math.fsum(counts)
    known = {
        token: (math.log(count / total), row)
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
        if count > 0 and is_text(token)
    }
    longest = max(map(len, known), default=0)

    def spell(text: str) -> Spelling | None:
        # best[i]: of text[:i], log probability, where its last piece starts, and that piece's row.
        best = [(0.0, 0, -1)] + [(-math.inf, 0, -1)] * len(text)
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - longest), end):
                log_p, row = known.get(text[start:end], (-math.inf, -1))
                if best[start][0] + log_p > best[end][0]:
                    best[end] = (best[start][0] + log_p, start, row)
        if not text or best[-1][2] < 0:
            return None
        rows, end = [], len(text)
        while end:
            _, start, row = best[end]
            rows.append(row)
            end = start
        return rows[::-1], best[-1][0] + math.log(total)

    return spell


def _texts(pieces: Mapping[int, str], content: Mapping[str, Any]) -> dict[int, str]:
    """Convert pieces as the tokenizer's model writes them to the text that they represent."""
    steps = [content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    written = json.dumps(steps, ensure_ascii=False)
    if '"ByteLevel"' in written:
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        return {
            i: _from_bytes([byte_of[c] for c in piece]) if set(piece) <= byte_of.keys() else piece
            for i, piece in pieces.items()
        }
    if "\u2581" in written:
        pieces = {i: piece.replace("\u2581", " ") for i, piece in pieces.items()}
    texts = dict(pieces)
    if content["model"].get("byte_fallback"):
        letters = set(pieces.values())
        for i, piece in pieces.items():
            if match := _BYTE.fullmatch(piece):
                # A byte below 0x80 is a letter; it is only used where that has no other token.
                text = _from_bytes([int(match[1], 16)])
                texts[i] = MARK + piece if text in letters else text
    return texts


def _from_bytes(values: Sequence[int]) -> str:
    try:
        return bytes(values).decode()
    except UnicodeDecodeError:
        return MARK + "".join(f"<0x{value:02X}>" for value in values)


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers (such as GPT-2's) write for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _roles(file: Path) -> dict[str, str]:
    """Roles of the special tokens: from content to name."""
    config = json.loads(file.read_text()) if file.is_file() else {}
    names: dict[str, str] = {}
    for role, name in ROLES.items():
        token = config.get(role)
        if token is not None:
            names.setdefault(token["content"] if isinstance(token, dict) else token, name)
    return names
