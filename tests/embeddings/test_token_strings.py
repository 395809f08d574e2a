"""What a token is called, and how a text is spelled."""

import json
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dept.data.corpus import read_corpus
from dept.embeddings.token_strings import MARK, is_text, speller, strings_of
from dept.errors import DataError


def save(directory, model, roles, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(list(roles.values()))
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(roles))
    return directory


def test_a_token_is_its_text_in_prepared_tokenizers(prepared):
    directory = prepared / "tokenizers/tiny/manual"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    strings = strings_of(directory)
    assert len(set(strings)) == len(strings) == tokenizer.get_vocab_size()
    written = [tokenizer.id_to_token(i) for i in range(len(strings))]
    assert written[:5] == ["<unk>", "<s>", "</s>", "<pad>", "<0x00>"]
    assert strings[:5] == [MARK + "<unk>", MARK + "<s>", MARK + "</s>", MARK + "<pad>", "\0"]
    assert strings[260:] == written[260:]
    assert strings[4 + 0xE4] == MARK + "<0xE4>"
    assert strings[4 + ord("e")] == MARK + "<0x65>"  # not used: "e" is a token
    missing = next(chr(i) for i in range(32, 127) if chr(i) not in written)
    assert strings[4 + ord(missing)] == missing  # used for it: the only one


def test_spelling_is_what_the_tokenizer_does(prepared):
    corpus = read_corpus(prepared, "tiny")
    directory, counts = corpus.tokenizers["mail"].path, corpus.source("mail", "mail").counts()
    strings = strings_of(directory, corpus.tokenizers["mail"].vocab_size)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    spell = speller(strings, counts.tolist())
    agree = []
    for text in filter(is_text, strings_of(corpus.tokenizers["global"].path)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if all(is_text(strings[i]) and counts[i] for i in ids):
            rows, log_count = spell(text)
            assert "".join(strings[row] for row in rows) == text
            p = np.log(counts[rows] / counts.sum()).sum()
            assert log_count == pytest.approx(p + math.log(counts.sum()))
            agree.append(rows == ids)
    assert len(agree) > 300 and sum(agree) > 0.95 * len(agree)


def test_the_most_probable_spelling_of_tokens_that_occurred():
    spell = speller(["a", "b", "ab", "c", "abc", MARK + "d"], [8, 8, 4, 1, 0, 5])
    assert spell("ab") == ([2], pytest.approx(math.log(4)))
    assert spell("abc")[0] == [2, 3]  # the whole has a row and never occurred
    assert spell("d") is spell("") is spell("ax") is None
    assert speller(["a"], [0])("a") is None


def test_other_tokenizers_are_written_the_same_way(tmp_path):
    byte_level = save(
        tmp_path / "bytes",
        models.BPE(vocab={"Ġthe": 0, "Ã¤": 1, "ä": 2, "Ċ": 3, "</s>": 4}, merges=[]),
        {"unk_token": "<|end|>", "eos_token": "<|end|>", "mask_token": "<|mask|>"},
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )
    assert strings_of(byte_level) == [
        " the", "ä", MARK + "<0xE4>", "\n", "</s>", MARK + "</s>", MARK + "<|mask|>",
    ]  # fmt: skip
    metaspace = save(
        tmp_path / "metaspace",
        models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("the", -1.0), (" the", -2.0)], unk_id=0),
        {"unk_token": "<unk>"},
        pre_tokenizer=pre_tokenizers.Metaspace(),
    )
    strings = strings_of(metaspace, vocab_size=6)
    assert strings[:3] == [MARK + "<unk>", " the", "the"]
    assert strings[3].startswith(MARK + "id 3 of ")  # a second token of that text
    assert len(set(strings)) == 6 and not set(strings[4:]) & set(strings_of(byte_level, 9))


def test_sizes_and_paths_that_cannot_be_are_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match="ids, which an embedding of 5 rows cannot hold"):
        strings_of(prepared / "tokenizers/tiny/mail", 5)
    with pytest.raises(DataError, match="does not exist"):
        strings_of(tmp_path)
