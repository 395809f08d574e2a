"""Stage 2: text -> tokenizers.

Words of each source's training text are counted once (`count_words`), and every tokenizer is
trained on such counts: the global one on the sum over the sources, weighted by temperature, or
equally if it is universal. Counts make training an order of magnitude faster than raw text and
honour the weights exactly, without drawing documents.

The unigram model is trained by `sentencepiece` and saved for `tokenizers`. Its own trainer is not
used because two runs of it differ. Text is never changed, so that decode(encode(text)) == text
whatever the text: no normalizer, spaces stay spaces (a metaspace would swallow a real U+2581),
characters without a piece go through bytes, and WORDS cuts text so that no piece can look like a
byte (`<0x41>`) or a special token (`</s>`).
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dept.checkpoint import durable
from dept.data_prep.collect import document_draw, part_path
from dept.data_prep.corpus import TokenizerOptions
from dept.data_prep.files import WORK, publish_directory, read_json, read_texts
from dept.data_prep.pool import Task
from dept.errors import DataError

WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
PIECE_LENGTH = 16  # characters of the longest piece
SEED_CHARACTERS = 2 * 10**6  # of the commonest words, whose parts are candidates
SEED_PIECES = 10**6  # candidates in all
COVERAGE = 0.9995  # share of characters that get their own piece; the rest is spelled with bytes

# sentencepiece reads lines of word, tab, count: what would break a line stands in private-use
# characters meanwhile.
ESCAPE = str.maketrans({"\t": "\ue009", "\n": "\ue00a", "\r": "\ue00d"})
UNESCAPE = str.maketrans({"\ue009": "\t", "\ue00a": "\n", "\ue00d": "\r", "\u2581": " "})


def words_path(source: Path) -> Path:
    """Word counts of a source, given its directory."""
    return source / "text" / "words.json.zst"


def count_words(task: Task, source: Path, summary: dict[str, Any], sample_bytes: int) -> None:
    """Writes `text/words.json.zst`: how often each word occurs in (a sample of) the training text.

    Args:
        task: reports progress, in bytes of text.
        source: directory of the source.
        summary: collected.json of the source.
        sample_bytes: about so much text is counted, a share of the documents drawn by their hash.
    """
    import regex
    import zstandard

    target = words_path(source)
    find = regex.compile(WORDS).findall
    counts: Counter[str] = Counter()
    share = sample_bytes / summary["train"]["bytes"]
    size = 0
    for part in summary["train"]["parts"]:
        for text in read_texts(part_path(source, "train", part)):
            data = text.encode()
            task.report(len(data))
            if share >= 1 or document_draw(data)[1] < share:
                counts.update(find(text))
                size += len(data)
    content = json.dumps({"bytes": size, "words": dict(sorted(counts.items()))}).encode()
    durable.write(target, zstandard.ZstdCompressor(level=3).compress(content))


def train_tokenizer(
    task: Task, target: Path, options: TokenizerOptions, sources: dict[str, dict[str, Any]]
) -> None:
    """Makes one tokenizer directory: trained on word counts, or fetched as it is.

    Args:
        task: reports progress, in bytes of training text.
        target: directory to make.
        options: which tokenizer.
        sources: name -> `path` (directory of the source) and `bytes` of its training text.
    """
    work = target.parent / WORK / target.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if options.path or options.hub:
        _fetch(options, work)
    else:
        words, weighted = weighted_words(options, sources)
        _train(target.name, options, words, weighted, work)
    publish_directory(work, target)
    task.report(sum(source["bytes"] for source in sources.values()))


def weighted_words(
    options: TokenizerOptions, sources: dict[str, dict[str, Any]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Word counts of the sources together: as they are, and weighted.

    Weighted, the text of source k counts in proportion to bytes_k ** temperature; in a universal
    tokenizer all sources count alike.

    Args:
        options: of the tokenizer.
        sources: name -> `path` (directory of the source) and `bytes` of its training text.
    """
    import zstandard

    temperature = 0.0 if options.universal else options.temperature
    scales = {}
    words = {}
    for name, source in sources.items():
        data = words_path(source["path"]).read_bytes()
        content = json.loads(zstandard.ZstdDecompressor().decompress(data))
        # The trainer takes U+2581 for a space: a word that has one is left to the bytes.
        words[name] = {w: n for w, n in content["words"].items() if "\u2581" not in w}
        scales[name] = source["bytes"] ** temperature / max(content["bytes"], 1)
    unit = min(scales.values())  # nothing is scaled down, so no word is rounded away
    total: Counter[str] = Counter()
    weighted: Counter[str] = Counter()
    for name, counts in words.items():
        scale = scales[name] / unit
        total.update(counts)
        weighted.update({word: round(count * scale) for word, count in counts.items()})
    return total, weighted


def _train(
    name: str,
    options: TokenizerOptions,
    words: dict[str, int],
    weighted: dict[str, int],
    directory: Path,
) -> None:
    """Trains a unigram model and writes it as a transformers tokenizer.

    When the text has too few different words for `vocab_size`, the vocabulary is smaller.
    """
    import sentencepiece

    if not any(word.strip() for word in words):
        raise DataError(f"Tokenizer {name}: its training text has no words; bring more text.")
    seeds = directory / "seeds.tsv"
    seeds.write_text("".join(f"{piece}\t{score}\n" for piece, score in _seeds(words)))
    lines = (f"{word.translate(ESCAPE)}\t{weighted[word]}" for word in sorted(weighted))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            input_format="tsv",
            model_type="unigram",
            vocab_size=options.vocab_size,
            hard_vocab_limit=False,
            max_sentencepiece_length=PIECE_LENGTH,
            seed_sentencepieces_file=str(seeds),
            character_coverage=_coverage(weighted, options.vocab_size or 0),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,  # WORDS has split already
            split_by_number=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=SPECIALS["unk_token"],
            bos_piece=SPECIALS["bos_token"],
            eos_piece=SPECIALS["eos_token"],
            pad_piece=SPECIALS["pad_token"],
            num_threads=1,  # sums of floats, and so the result, depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"Tokenizer {name}: sentencepiece cannot make {options.vocab_size} pieces "
            f"({' '.join(str(error).split())}); change its vocab_size or bring more text."
        ) from None
    seeds.unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(pieces.get_piece_size())
    _save(
        [(pieces.id_to_piece(i).translate(UNESCAPE), pieces.get_score(i)) for i in ids], directory
    )


def _seeds(words: dict[str, int]) -> list[tuple[str, int]]:
    """Candidate pieces with their scores (count * length), from which the trainer prunes.

    The trainer's own candidates come from a suffix array of the lines, which overlooks whole words
    when each is on a separate line: with these, there are 2 to 40 % fewer tokens on the same text.
    """
    escape = ESCAPE | {ord(" "): "\u2581"}
    counts: Counter[str] = Counter()
    size, least = 0, 1
    for word, count in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        word = word.translate(escape)
        size += len(word)
        if size > SEED_CHARACTERS:
            continue
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + PIECE_LENGTH) + 1):
                counts[word[start:end]] += count
        while len(counts) > 4 * SEED_PIECES:  # memory stays bounded; the rarest go
            least += 1
            counts = Counter({p: n for p, n in counts.items() if n >= least})
    pieces = [(p, n * len(p)) for p, n in counts.items() if n > 1]
    pieces.sort(key=lambda item: (-item[1], item[0]))
    characters = _characters((word.translate(escape), count) for word, count in words.items())
    return sorted(characters.items()) + pieces[:SEED_PIECES]


def _characters(words: Iterable[tuple[str, int]]) -> Counter[str]:
    """How often each character occurs in words with their counts."""
    found: Counter[str] = Counter()
    for word, count in words:
        for character in word:
            found[character] += count
    return found


def _coverage(words: dict[str, int], vocab_size: int) -> float:
    """COVERAGE, or less where single characters would take more than half of the vocabulary."""
    characters = _characters(words.items())
    most = [count for _, count in characters.most_common((vocab_size - 260) // 2)]
    return min(COVERAGE, sum(most) / characters.total())


def _save(pieces: list[tuple[str, float]], directory: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in SPECIALS.values()]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIALS,
        "clean_up_tokenization_spaces": False,  # would drop spaces before punctuation
        "model_max_length": int(1e30),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(SPECIALS, indent=2) + "\n")


def _fetch(options: TokenizerOptions, directory: Path) -> None:
    """Copies an existing tokenizer, with a padding token where it has none."""
    from transformers import AutoTokenizer

    name = options.path or options.hub or ""
    if options.path and not Path(name).is_dir():
        raise DataError(f"Tokenizer directory {name} does not exist: correct the path in the yaml.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Tokenizer {name} cannot be loaded ({str(error).splitlines()[0]}): "
            "check its name, and the network."
        ) from None
    if tokenizer.eos_token is None:
        raise DataError(f"Tokenizer {name} has no end-of-text token to put between documents.")
    if not tokenizer.is_fast:
        raise DataError(f"Tokenizer {name} has no fast form (tokenizer.json): take another.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.init_kwargs.pop("auto_map", None)  # names code, which is not copied
    tokenizer.save_pretrained(directory)


def describe_tokenizer(directory: Path, options: TokenizerOptions) -> dict[str, Any]:
    """The properties of a tokenizer directory that shards need.

    Args:
        directory: directory of the tokenizer.
        options: its options; `vocab_size` counts only with `path` or `hub`.

    Returns:
        `eos_id`, `special_ids` (ascending) and `vocab_size`: the largest id + 1, or `vocab_size` of
        the options where a fetched tokenizer is padded.

    Raises:
        DataError: it has more ids than the yaml pads to.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    eos = read_json(directory / "tokenizer_config.json")["eos_token"]
    eos_id = tokenizer.token_to_id(eos if isinstance(eos, str) else eos["content"])
    size = max(tokenizer.get_vocab().values()) + 1
    if options.vocab_size and (options.path or options.hub):
        if options.vocab_size < size:
            raise DataError(
                f"Tokenizer {directory} has {size} ids and vocab_size is {options.vocab_size}: "
                "raise it, or leave it out."
            )
        size = options.vocab_size
    specials = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return {"eos_id": eos_id, "special_ids": sorted(specials | {eos_id}), "vocab_size": size}
