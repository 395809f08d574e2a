"""Sources that are found: the division is even, recovers known parts, and resumes to the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_text import sentences
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2_contingency, chisquare
from sklearn.metrics.cluster import contingency_matrix

from dept.data_prep import cluster
from dept.data_prep.clusters import divide
from dept.data_prep.clusters.divide import counts_by_file, divide_file, fit, sources_of
from dept.data_prep.clusters.hard_em import even_prices, hard_em
from dept.data_prep.clusters.models import FITS, load
from dept.data_prep.collect import document_draw
from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.files import read_texts
from dept.data_prep.pool import Task
from dept.errors import DataError

ALPHABETS = ("abcdefgh", "ijklmnop", "qrstuvwx")


class Quiet(Task):
    """A task that nobody watches."""

    def report(self, size):
        pass


def documents(count=120):
    return {name: sentences(count, seed, name) for seed, name in enumerate(ALPHABETS)}


def test_even_prices_reach_the_best_even_assignment():
    scores = np.random.default_rng(0).normal(size=(400, 4))
    scores[:, 0] += 1.5
    chosen = (scores - even_prices(scores, np.ones(400))).argmax(axis=1)
    assert np.abs(np.bincount(chosen, minlength=4) - 100).max() <= 1
    rows, places = linear_sum_assignment(-np.repeat(scores, 100, axis=1))
    best = np.repeat(scores, 100, axis=1)[rows, places].sum()
    assert scores[np.arange(400), chosen].sum() == pytest.approx(best, rel=2e-3)
    assert np.bincount(scores.argmax(axis=1)).max() > 180  # without prices it is not even


def test_sizes_count_not_points():
    scores = np.random.default_rng(1).normal(size=(600, 3))
    sizes = np.where(np.arange(600) < 100, 50.0, 1.0)
    chosen = (scores - even_prices(scores, sizes)).argmax(axis=1)
    assert np.bincount(chosen, sizes) == pytest.approx(np.full(3, sizes.sum() / 3), rel=0.03)


def test_alternation_finds_groups_of_points():
    generator = np.random.default_rng(2)
    truth = np.repeat([0, 1, 2], 50)
    points = np.array([[0, 9], [9, 0], [-9, -9]])[truth] + generator.normal(size=(150, 2))

    def score(centres):
        return -((points[:, None] - centres) ** 2).sum(-1)

    def centres_of(chosen):
        return np.stack([points[chosen == k].mean(axis=0) for k in range(3)])

    centres, division = hard_em(
        points[[0, 60, 120]], score, centres_of, np.ones(150), balanced=True
    )
    assert np.array_equal(division.chosen, truth)
    assert division.objective == pytest.approx(
        -((points - centres_of(truth)[truth]) ** 2).sum(-1).mean()
    )
    assert np.array_equal(centres, centres_of(truth))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("method", [method for method in FITS if method != "random"])
def test_texts_of_different_words_are_divided_by_their_words(tmp_path, method, balanced):
    texts = [text for of_name in documents().values() for text in of_name]
    truth = np.repeat([0, 1, 2], len(texts) // 3)
    model = FITS[method](texts, 3, 17, balanced=balanced)
    model.save(tmp_path)
    unseen = [text for seed, name in enumerate(ALPHABETS) for text in sentences(5, seed, name)]
    found = load(tmp_path).scores(unseen)
    assert np.array_equal(found, model.scores(unseen))
    chosen = (model.scores(texts) - model.prices).argmax(axis=1)
    names = [np.bincount(chosen[truth == k]).argmax() for k in range(3)]
    assert sorted(names) == [0, 1, 2]
    wrong = (chosen != np.array(names)[truth]).mean()
    assert wrong <= (0.05 if balanced else 0)  # sizes in bytes differ a little
    assert found.argmax(axis=1).tolist() == np.repeat(names, 5).tolist()


def test_random_parts_depend_on_nothing_but_the_text_and_the_seed(tmp_path):
    texts = [text for of_name in documents(1000).values() for text in of_name]
    model = FITS["random"](texts, 4, 17, balanced=True)
    model.save(tmp_path)
    chosen = model.scores(texts).argmax(axis=1)
    assert np.array_equal(load(tmp_path).scores(texts[::-1]).argmax(axis=1), chosen[::-1])
    assert not model.prices.any()
    other = FITS["random"](texts, 4, 18, balanced=True).scores(texts).argmax(axis=1)
    alphabets = np.repeat([0, 1, 2], 1000)
    split = [int(document_draw(text.encode())[0] * 4) for text in texts]
    for about in (alphabets, split, other):  # whatever is known of a text, its part is open
        assert chi2_contingency(contingency_matrix(about, chosen)).pvalue > 1e-4
    assert chisquare(np.bincount(chosen)).pvalue > 1e-4


def test_a_model_with_code_in_it_is_not_loaded(tmp_path):
    model = FITS["unigram"]([t for of in documents(20).values() for t in of], 2, 0, balanced=True)
    model.save(tmp_path)
    np.savez(tmp_path / "arrays.npz", log_p=np.array([print], object), prices=np.zeros(2))
    with pytest.raises(ValueError, match="allow_pickle"):
        load(tmp_path).scores(["x"])


def corpus_of(root: Path, options: str = "k: 3"):
    for name, texts in documents().items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (root / f"{name}.jsonl").write_text(lines)
    path = root / "mine.yaml"
    path.write_text(
        f"corpus: mine\npart_bytes: 6kB\nsources:\n  p: {{files: '*.jsonl', {options}}}"
    )
    return load_corpus(path)


def divided(root: Path, corpus) -> dict[str, list[str]]:
    folder = root / "data/mine/clusters"
    for number, name in enumerate(ALPHABETS):
        divide_file(Quiet(), corpus, root / f"{name}.jsonl", number, folder)
    return {
        str(path.relative_to(folder)): list(read_texts(path))
        for path in sorted(folder.glob("*/*.jsonl.zst"))
    }


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("clusters")
    corpus = corpus_of(root)
    files = [root / f"{name}.jsonl" for name in ALPHABETS]
    fit(Quiet(), corpus, files, root / "data/mine")
    return root, corpus


def test_every_document_is_in_one_cluster_also_after_a_kill(fitted, monkeypatch):
    monkeypatch.setattr(divide, "TOGETHER", 16)
    root, corpus = fitted
    folder = root / "data/mine/clusters"
    found = divided(root, corpus)
    every = [text for texts in found.values() for text in texts]
    assert sorted(every) == sorted(t for of in documents().values() for t in of)
    assert [sum(row) for row in counts_by_file(folder).values()] == [120] * 3
    records = sorted((folder / "parts").glob("00001-*.json"))
    assert len(records) > 2  # a file has several parts
    for record in records[1:]:
        record.unlink()
        for path in folder.glob(f"*/{record.stem}.jsonl.zst"):
            path.unlink()
    assert divided(root, corpus) == found


def test_sources_are_the_clusters(fitted, tmp_path):
    _, corpus = fitted
    sources = sources_of(corpus, tmp_path)
    assert [source.name for source in sources] == ["p0", "p1", "p2"]
    assert sources[2].files == (str(tmp_path / "clusters/2/*.jsonl.zst"),)


def test_what_clusters_hold(fitted, capsys, monkeypatch):
    root, corpus = fitted
    divided(root, corpus)
    arguments = [str(root / "mine.yaml"), "--root", str(root)]
    assert cluster.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in ALPHABETS)
    assert cluster.main([*arguments, "--text", documents()["ijklmnop"][0]]) == 0
    own = load(root / "data/mine/clusters/model").scores([documents()["ijklmnop"][0]]).argmax()
    assert capsys.readouterr().out.strip() == f"p{own}"


def test_agreement_by_hand():
    same = cluster.by_label({"data/c/a.x/text/val/0": [5, 0], "data/c/b.y/text/val/0": [0, 5]})
    assert same.index.tolist() == ["a.x", "b.y"] and cluster.agreement(same) == 1
    chance = cluster.by_label({"a": [4, 4], "b": [4, 4]})
    assert cluster.agreement(chance) == pytest.approx(0, abs=0.1)
    crossed = {
        f"data/c/{d}.{lang}/text/train/0": [8 * (d == "a"), 8 * (d == "b")]
        for d in "ab"
        for lang in "xy"
    }
    found = cluster.agreements(cluster.by_label(crossed))
    assert found["first part of its name"] == 1
    assert found["second part"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("k: 1", "sources.p.k is 1: give it 2 clusters or more"),
        ("k: 3, method: lda", "sources.p.method is 'lda': write one of tfidf, unigram"),
        ("k: 3, balanced: 2", "sources.p.balanced is 2: write true or false"),
        ("k: 3}\n  q: {files: a", "sources.p has k, so its clusters are the sources"),
        ("k: 3, fit_bites: 2", "unknown key 'fit_bites'"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        corpus_of(tmp_path, options)


def test_too_few_documents(tmp_path):
    corpus = corpus_of(tmp_path, "k: 200")
    files = [tmp_path / f"{name}.jsonl" for name in ALPHABETS]
    with pytest.raises(DataError, match="360 different documents are too few for 200 clusters"):
        fit(Quiet(), corpus, files, tmp_path / "data")
