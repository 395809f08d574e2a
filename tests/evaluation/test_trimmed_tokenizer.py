"""A trimmed tokenizer cuts text of held tokens as the whole one does, and other text somehow."""

import inspect
import json
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dept.data.corpus import GLOBAL, read_corpus
from dept.evaluation.models.source_models import trimmed
from dept.evaluation.models.trimmed_tokenizer import trim

STRANGE = [
    "",
    " ",
    "naïve café",
    "日本語のテキスト",
    "🙂🙃",
    "\0\x7f\t\r\n",
    "<0x41></s><unk>",
    "xq" * 99,
]
TEXTS = inspect.getsource(random).split("\n\n")


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def compare(whole, part, token_ids, texts):
    """Whether texts of held tokens are cut alike; returns how many there were, and of others."""
    held, rows = set(token_ids), {token: row for row, token in enumerate(token_ids)}
    alike = 0
    for text in texts:
        ids, ours = encode(whole, text), encode(part, text)
        assert all(0 <= i < part.get_vocab_size() for i in ours)
        if set(ids) <= held:
            assert ours == [rows[i] for i in ids], text
            alike += 1
    return alike, len(texts) - alike


def test_a_source_has_its_own_ids_and_the_same_words(prepared, tmp_path):
    corpus = read_corpus(prepared, "tiny")
    source = corpus.source("code", GLOBAL)
    whole = AutoTokenizer.from_pretrained(corpus.tokenizers[GLOBAL].path)
    token_ids = source.local_vocabulary().tolist()
    ours, extra = trimmed(whole, token_ids)
    assert extra == 0 and len(ours) == len(token_ids) < len(whole)
    assert whole.convert_ids_to_tokens(token_ids) == ours.convert_ids_to_tokens(range(len(ours)))
    assert ours.special_tokens_map == whole.special_tokens_map
    assert [token_ids[i] for i in ours.all_special_ids] == whole.all_special_ids
    texts = [(prepared / f"{name}.txt").read_text() for name in ("code", "tools")]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    parts = whole.backend_tokenizer, ours.backend_tokenizer
    alike, others = compare(*parts, token_ids, [*lines, *TEXTS, *STRANGE])
    assert alike > 1000 and others > 100
    bytes_held = [i for i in token_ids if whole.convert_ids_to_tokens(i).startswith("<0x")]
    assert bytes_held  # characters without a piece are among the text that is cut alike

    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert all(again(text)["input_ids"] == ours(text)["input_ids"] for text in lines[:200])
    assert [*again("text")] == ["input_ids", "attention_mask"]


def unigram(vocabulary, **options):
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, **options))
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tokenizer


def test_an_unknown_character_stays_dearer_than_pieces():
    """Else `ab cd` (-40) would lose to the unknown `a` and `bcd` (-20 - 10 - 1)."""
    pieces = [("ab", -20.0), ("cd", -20.0), ("bcd", -1.0), ("x", -40.0)]
    whole = unigram([("<unk>", 0.0), *pieces])
    content, _ = trim(json.loads(whole.to_str()), [0, 1, 2, 3])
    ours = Tokenizer.from_str(json.dumps(content))
    assert encode(whole, "abcd") == encode(ours, "abcd") == [1, 2]
    content["model"]["vocab"][0][1] = 0.0
    assert encode(Tokenizer.from_str(json.dumps(content)), "abcd") == [0, 3]


def test_any_part_of_a_unigram_vocabulary_cuts_alike():
    """Scores over 30 nats, so that nearly all unknown characters compete with pieces."""
    draw = random.Random(5)
    alphabet = "abcdef"
    pieces = {"".join(draw.choices(alphabet, k=draw.choice([1, 1, 2, 3]))) for _ in range(60)}
    bytes_ = [(f"<0x{i:02X}>", -draw.uniform(0, 30)) for i in range(256)]
    vocabulary = [("<unk>", 0.0), *((p, -draw.uniform(0, 30)) for p in sorted(pieces)), *bytes_]
    whole = unigram(vocabulary, byte_fallback=True)
    texts = ["".join(draw.choices(alphabet + "é", k=draw.randrange(1, 9))) for _ in range(800)]
    total = np.zeros(2, int)
    for _ in range(20):
        token_ids = sorted({0, *draw.sample(range(1, len(vocabulary)), len(vocabulary) * 2 // 3)})
        content, _ = trim(json.loads(whole.to_str()), token_ids)
        total += compare(whole, Tokenizer.from_str(json.dumps(content)), token_ids, texts)
    assert min(total) > 1000


def test_tokens_added_behind_a_unigram_vocabulary_keep_their_order():
    whole = unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)])
    whole.add_tokens(["one", "two", "three"])
    whole.post_processor = processors.TemplateProcessing("$A three", special_tokens=[("three", 5)])
    content, _ = trim(json.loads(whole.to_str()), [0, 2, 3, 5])
    ours = Tokenizer.from_str(json.dumps(content))
    assert ours.encode("bonebthree").ids == [1, 2, 1, 3, 3]
    assert ours.token_to_id("two") is None


def byte_level_bpe(**options):
    """As GPT-NeoX's: specials first, and spaces added behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (8, 4, 2)])
    return tokenizer


def byte_fallback_bpe():
    """As Llama's: characters, and bytes for those that are none."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<|end|>", "<|pad|>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if "<0x" not in t["content"]]
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize(
    "make",
    [byte_level_bpe, lambda: byte_level_bpe(ignore_merges=True), byte_fallback_bpe],
    ids=["bytes", "ignore_merges", "byte_fallback"],
)
def test_a_bpe_cuts_alike_and_spells_any_text(make, tmp_path):
    backend = make()
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    seen = {i for text in TEXTS[: len(TEXTS) // 3] for i in encode(backend, text)}
    specials = [whole.eos_token_id, whole.pad_token_id]
    token_ids = sorted(seen.union(specials))
    ours, extra = trimmed(whole, token_ids)
    part = ours.backend_tokenizer
    assert extra and len(ours) == len(token_ids) + extra < len(whole)
    assert [token_ids[i] for i in ours.all_special_ids] == whole.all_special_ids
    lines = [f"{line}\n" for text in TEXTS for line in text.split("\n")]
    alike, others = compare(backend, part, token_ids, [*lines, *TEXTS, *STRANGE])
    assert alike > 100 and others > 10
    for text in [*TEXTS, *STRANGE]:
        assert part.decode(encode(part, text), skip_special_tokens=False) == text
    assert [token_ids[i] for i in encode(part, "  <|end|>")][-1] == whole.eos_token_id

    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert all(again(text)["input_ids"] == ours(text)["input_ids"] for text in lines)


def test_what_cannot_be_trimmed_is_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(ValueError, match="of type WordLevel cannot be trimmed"):
        trim(json.loads(words.to_str()), [0])
    ends = Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"))
    with pytest.raises(ValueError, match="BPE tokenizer with end_of_word_suffix"):
        trim(json.loads(ends.to_str()), [0])
    with pytest.raises(ValueError, match="unknown token 0 is not among those to keep"):
        trim(json.loads(unigram([("<unk>", 0.0), ("a", -1.0)]).to_str()), [1])
