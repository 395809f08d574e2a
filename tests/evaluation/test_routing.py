"""Which source a text is of: the rules, and the pieces that they are measured on."""

import json

import numpy as np
import pytest

from dept.data.corpus import GLOBAL, read_corpus
from dept.errors import DataError
from dept.evaluation import routing
from dept.evaluation.scoring import routers
from dept.evaluation.scoring.validation_text import documents, pieces


def test_unseen_tokens_have_the_share_of_those_seen_once():
    counts = np.array([5, 1, 1, 3, 0, 0, 0, 0])
    p = np.exp(routers.unigram_log_probabilities(counts))
    assert p.sum() == pytest.approx(1)
    a = 2 / 8
    assert p == pytest.approx((counts + a) / (10 + 8 * a))
    assert np.isfinite(routers.unigram_log_probabilities(np.array([4, 4, 0]))).all()


def test_a_source_of_little_text_is_not_taken_for_what_none_knows():
    """With add-one, the less text a source has, the cheaper a token is that it never saw."""
    few, many = np.zeros(8000, int), np.zeros(8000, int)
    few[:100], many[100:4000] = 8, 200
    few[0], many[100] = 1, 1
    text = [*range(200, 260), *range(5000, 5040)]  # of the large one, some of it unseen
    add_one = [np.log((c + 1) / (c.sum() + 8000))[text].sum() for c in (few, many)]
    ours = [routers.unigram_log_probabilities(c)[text].sum() for c in (few, many)]
    assert ours[1] > ours[0]
    assert ours[1] - ours[0] > add_one[1] - add_one[0]


def test_rank_is_by_bits_and_then_by_order():
    assert routers.rank({"b": 2.0, "a": 1.0, "c": 1.0}) == [("a", 1.0), ("c", 1.0), ("b", 2.0)]


def test_pieces_are_whole_characters_and_do_not_overlap():
    text = "añb漢字c" * 7
    for size in (1, 2, 3, 4, 10):
        found = list(pieces(text, size))
        assert all(size - 3 < len(piece.encode()) <= size for piece in found)
        if size > 2:
            assert text.startswith("".join(found))
            assert len(text.encode()) - len("".join(found).encode()) < size
    assert list(pieces("  \n   ab", 4)) == ["  ab"]
    assert list(pieces("漢", 2)) == []


def test_a_limit_cuts_long_documents_alike_and_keeps_short_ones(prepared):
    corpus = read_corpus(prepared, "tiny")
    every = documents(corpus, "manual")
    assert all(document.whole for document in every) and len(every) > 1
    sizes = [len(document.text.encode()) for document in every]
    limit = sum(sizes) // 2
    cut = documents(corpus, "manual", limit)
    lengths = [len(document.text.encode()) for document in cut]
    assert limit * 0.9 < sum(lengths) <= limit
    for document, length, whole, size in zip(cut, lengths, every, sizes, strict=True):
        assert whole.text.startswith(document.text)
        assert document.whole == (length == size)
        assert document.whole or max(lengths) - length < 4
    assert documents(corpus, "manual", sum(sizes)) == every
    with pytest.raises(DataError, match="text/val holds no text: prepare corpus tiny"):
        documents(corpus, "nowhere")


@pytest.mark.parametrize("own", [False, True])
def test_the_unigram_rule_needs_no_model(prepared, tmp_path, capsys, own):
    arguments = ["--corpus", "tiny", "--root", f"{prepared}", "--lengths", "100", "300"]
    out = tmp_path / "routing.json"
    arguments += ["--out", f"{out}", *(["--own"] if own else [])]
    assert routing.main(arguments) == 0
    assert "unigram, 100 bytes" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["300"]["unigram"]["average"] > 0.8  # four sources: 0.25 by chance
    result = found["100"]["unigram"]
    assert list(result["confusion"]) == ["manual", "code", "mail", "tools"]
    for name, row in result["confusion"].items():
        assert result["accuracy"][name] == row.get(name, 0) / sum(row.values())

    corpus = read_corpus(prepared, "tiny")
    text = documents(corpus, "mail")[0].text[:200]
    bits = []
    for name in corpus.sources:
        source = corpus.source(name, name if own else GLOBAL)
        from transformers import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(corpus.tokenizers[source.tokenizer].path)(text)
        counts = source.counts()
        once = (counts == 1).sum()
        p = (counts + once / len(counts)) / (counts.sum() + once)
        bits.append(-np.log2(p[ids.input_ids]).sum() / len(text.encode()))
    sources = [corpus.source(n, n if own else GLOBAL) for n in corpus.sources]
    router = routers.UnigramRouter(corpus, sources)
    assert router.bits_per_byte([text])[:, 0] == pytest.approx(bits)

    assert routing.main(arguments) == 2
    assert "routing.json exists already: name another --out" in capsys.readouterr().err
    assert routing.main([*arguments, "--force"]) == 0


def test_what_cannot_be_measured_is_refused(prepared, capsys):
    tiny = ["--corpus", "tiny", "--root", f"{prepared}"]
    assert routing.main([*tiny, "--lengths", "1000000"]) == 2
    assert "no validation document of manual has 1000000 bytes" in capsys.readouterr().err
    assert routing.main(["--corpus", "nowhere", "--root", f"{prepared}"]) == 2
    assert "corpus.json does not exist" in capsys.readouterr().err
    for arguments in ([], ["runs/a", *tiny], [*tiny, "--pieces", "0"]):
        with pytest.raises(SystemExit) as stopped:
            routing.main(arguments)
        assert stopped.value.code == 2
