"""Bits per byte of raw text, against plain torch; and what a vocabulary cannot spell."""

import math
from pathlib import Path

import pytest
import torch
from external import CONTEXT, neox_tokenizer, plain_nats, save_neox
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from dept.errors import ConfigError
from dept.evaluation.models.source_models import SourceModel, load
from dept.evaluation.scoring.scorer import Scorer
from dept.evaluation.scoring.spelling import Speller

TEXT = (Path(__file__).parents[2] / "README.md").read_text()
DOCUMENTS = [TEXT[:700], "short", "Grüße, 漢字 and </s> too", TEXT[5000:5400]]


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> SourceModel:
    folder = tmp_path_factory.mktemp("neox")
    save_neox(folder, TEXT, steps=20)
    return load(folder)


def ids_of(model, text):
    return model.tokenizer(text).input_ids


def test_texts_by_themselves_begin_behind_the_end_of_another(neox):
    end = neox.tokenizer.eos_token_id
    scores = Scorer(neox).texts(DOCUMENTS)
    for text, score in zip(DOCUMENTS, scores, strict=True):
        ids = ids_of(neox, text)
        expected = sum(plain_nats(neox.model, [end, *ids], CONTEXT))
        assert score.nats == pytest.approx(expected, rel=1e-5)
        assert (score.tokens, score.bytes) == (len(ids), len(text.encode()))
        bits = expected / math.log(2) / len(text.encode())
        assert score.bits_per_byte == pytest.approx(bits, rel=1e-5)
    alone = [Scorer(neox).texts([text])[0].nats for text in DOCUMENTS]
    assert alone == pytest.approx([score.nats for score in scores], rel=1e-5)


def test_documents_are_one_stream_and_one_that_is_cut_is_not_charged_for_its_end(neox):
    end, whole = neox.tokenizer.eos_token_id, [True, False, True, False]
    stream, charged = [end], []
    for text, ends in zip(DOCUMENTS, whole, strict=True):
        ids = ids_of(neox, text)
        stream += [*ids, end]
        charged += [True] * len(ids) + [ends]
    nats = plain_nats(neox.model, stream, CONTEXT)
    expected = sum(loss for loss, counts in zip(nats, charged, strict=True) if counts)
    score = Scorer(neox).documents(DOCUMENTS, whole)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.tokens == sum(charged)
    assert Scorer(neox).documents(DOCUMENTS).nats == pytest.approx(sum(nats), rel=1e-5)


def test_a_context_is_what_is_asked_for_or_what_the_model_has(neox):
    end, ids = neox.tokenizer.eos_token_id, ids_of(neox, TEXT[:300])
    assert Scorer(neox).context == Scorer(neox, context=1000).context == CONTEXT
    (score,) = Scorer(neox, context=5).texts([TEXT[:300]])
    assert score.nats == pytest.approx(sum(plain_nats(neox.model, [end, *ids], 5)), rel=1e-5)
    with pytest.raises(ConfigError, match="a context of 1 predicts nothing"):
        Scorer(neox, context=1)


def test_a_first_token_that_the_tokenizer_adds_is_read_before_each_document(neox):
    """As Llama's: neither charged for, nor mistaken for a part of the text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = neox_tokenizer(TEXT)
    first, end = 7, tokenizer.eos_token_id
    piece = tokenizer.convert_ids_to_tokens(first)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[piece, "$A"], pair=None, special_tokens=[(piece, first)]
    )
    assert tokenizer("a").input_ids[0] == first
    score = Scorer(SourceModel("x", neox.model, tokenizer)).documents(["one two", "three"])
    one, two = (tokenizer(text).input_ids[1:] for text in ("one two", "three"))
    stream = [first, *one, end, first, *two, end]
    nats = plain_nats(neox.model, stream, CONTEXT)
    del nats[len(one) + 1]
    assert score.nats == pytest.approx(sum(nats), rel=1e-5)
    assert score.tokens == len(one) + len(two) + 2


def unigram_tokenizer(pieces: str) -> PreTrainedTokenizerFast:
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def test_what_is_unknown_costs_eight_bits_a_byte_beside_its_token(neox):
    tokenizer = unigram_tokenizer("ab c")
    model = SourceModel("x", neox.model, tokenizer)
    text = "ab 漢字 c"
    (score,) = Scorer(model).texts([text])
    ids = [2, 3, 4, 0, 4, 5]  # both characters are one unknown token
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    nats = sum(plain_nats(neox.model, [1, *ids], CONTEXT)) + 6 * 8 * math.log(2)
    assert score.unknown_bytes == 6
    assert score.nats == pytest.approx(nats, rel=1e-5)


def test_an_untrained_id_is_the_unknown_token_and_no_word_of_the_model(neox):
    tokenizer = unigram_tokenizer("ab c")
    model = SourceModel("x", neox.model, tokenizer, untrained_ids=(3, 5))
    (score,) = Scorer(model).texts(["abc"])
    kept = torch.tensor([i for i in range(416) if i not in (3, 5)])
    with torch.no_grad():
        logits = neox.model(input_ids=torch.tensor([[1, 2, 3]])).logits[0]
    log_p = torch.log_softmax(logits[:, kept], dim=-1)
    row = {int(i): place for place, i in enumerate(kept)}
    expected = -(log_p[0, row[2]] + log_p[1, row[0]] + log_p[2, row[0]])
    assert score.unknown_bytes == 2
    assert score.nats == pytest.approx(float(expected) + 2 * 8 * math.log(2), rel=1e-5)


def test_spelling_finds_what_is_dropped_and_leaves_special_tokens_as_text():
    dropping = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "e": 2}, merges=[]))
    speller = Speller(PreTrainedTokenizerFast(tokenizer_object=dropping))
    (spelled,) = speller.spell(["abé漢"])
    assert (spelled.ids, spelled.bytes, spelled.unknown_bytes) == ([0, 1], 7, 5)

    tokenizer = neox_tokenizer(TEXT)
    text = "all  of\tit <|endoftext|> \n漢字, too "
    (spelled,) = Speller(tokenizer).spell([text])
    assert spelled.unknown_bytes == 0 and tokenizer.eos_token_id not in spelled.ids
    assert tokenizer.decode(spelled.ids) == text

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    (spelled,) = Speller(tokenizer).spell(["a bc a"])
    assert spelled.ids == [0, 1, 0]
    assert spelled.unknown_bytes == 4  # bc, and both spaces, of which no token tells


def test_tokenizers_that_cannot_be_charged_for_are_refused(neox, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(ConfigError, match="is a slow tokenizer: save its fast form"):
        Speller(BertTokenizer(tmp_path / "vocab.txt"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(ConfigError, match="has neither eos_token nor bos_token"):
        Scorer(SourceModel("x", neox.model, tokenizer))
