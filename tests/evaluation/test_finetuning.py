"""Fine-tuning: layouts, head, losses, and examples, against a few lines each."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MptConfig, MptForCausalLM

from dept.config import extends
from dept.data_prep.downstream import main as prepare_downstream
from dept.data_prep.downstream import rated, sections
from dept.errors import ConfigError, DataError
from dept.evaluation.finetuning.baselines import bag_of_words, majority, word_counts
from dept.evaluation.finetuning.batches import Sample, batch
from dept.evaluation.finetuning.best_epoch import best
from dept.evaluation.finetuning.examples import Example, examples, read_splits, split_of
from dept.evaluation.finetuning.layouts import LAYOUTS, Special, cut, lay_out
from dept.evaluation.finetuning.model import FineTuned, add_rows, language_model_loss, last_token
from dept.evaluation.finetuning.options import TaskOptions, read_options
from dept.evaluation.finetuning.training import decayed, sequence_limit
from dept.evaluation.finetuning.transfer import embeddings

S, D, E = SPECIAL = 100, 101, 102
IDS = Special(*SPECIAL)
REVIEWS = {
    "name": "reviews",
    "kind": "classification",
    "columns": {"text": "sentence", "label": "label"},
    "labels": ["negative", "positive"],
}


def test_layouts_are_those_of_radford():
    def of(kind, limit=20, **pieces):
        return LAYOUTS[kind].sequences(pieces, IDS, limit)

    assert of("classification", text=[1, 2]) == [[S, 1, 2, E]]
    assert of("entailment", premise=[1, 2], hypothesis=[3]) == [[S, 1, 2, D, 3, E]]
    assert of("similarity", first=[1], second=[2, 3]) == [[S, 1, D, 2, 3, E], [S, 2, 3, D, 1, E]]
    asked = {"context": [1, 2], "answers": [[4], [5, 6]]}
    assert of("choice", question=[3], **asked) == [[S, 1, 2, 3, D, 4, E], [S, 1, 2, 3, D, 5, 6, E]]
    assert of("choice", **asked) == [[S, 1, 2, D, 4, E], [S, 1, 2, D, 5, 6, E]]


def test_what_is_too_long_is_cut_from_its_longest_piece_and_the_end_stays():
    long, short = list(range(50)), [60, 61]
    assert lay_out([[long], [short]], IDS, 10) == [S, 0, 1, 2, 3, 4, D, 60, 61, E]
    assert lay_out([[short], [long]], IDS, 10) == [S, 60, 61, D, 0, 1, 2, 3, 4, E]
    with pytest.raises(ConfigError, match=r"max_length is 4, and 2 pieces .* need 5"):
        lay_out([[long], [short]], IDS, 4)


@pytest.mark.parametrize("lengths", [[5], [9, 4, 4], [7, 7, 1], [3, 3, 3], [10, 9, 1, 0]])
def test_cutting_is_one_token_after_another_from_the_longest(lengths):
    for room in range(len(lengths), sum(lengths) + 2):
        expected = list(lengths)
        while sum(expected) > room:
            expected[expected.index(max(expected))] -= 1
        assert cut(lengths, room) == expected


def bodies():
    torch.manual_seed(0)
    mpt = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 16, "vocab_size": 50}
    yield MptForCausalLM(MptConfig(**mpt))
    llama = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    llama |= {"intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 16}
    yield LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False))


def fine_tuned(body, kind="classification", classes=2, **options):
    generator = torch.Generator().manual_seed(1)
    defaults = {"lm_coef": 0.5, "dropout": 0.0, "embedding_dropout": 0.0, "token_dropout": 0.0}
    return FineTuned(body, kind, classes, **defaults | options, generator=generator)


def two_samples(kind="classification"):
    sequences = [[[50, 3, 4, 52]], [[50, 7, 52]]]
    if kind != "classification":
        sequences = [[[50, 3, 51, 4, 52], [50, 4, 51, 3, 52]], [[50, 7, 51, 52], [50, 51, 7, 52]]]
    return [Sample(s, {}, label) for s, label in zip(sequences, (1, 0), strict=True)]


@pytest.mark.parametrize("body", bodies(), ids=lambda body: type(body).__name__)
def test_new_rows_are_added_to_every_matrix_and_old_ones_are_as_they_were(body):
    before = {name: value.clone() for name, value in body.state_dict().items()}
    assert add_rows(body, torch.Generator().manual_seed(0)) == Special(50, 51, 52)
    after = body.state_dict()
    tied = body.get_input_embeddings().weight is body.get_output_embeddings().weight
    assert tied == body.config.tie_word_embeddings
    longer = {name for name in before if before[name].shape != after[name].shape}
    assert len(longer) == 2 and all(len(after[name]) == 53 for name in longer)
    assert all(torch.equal(before[name], after[name][: len(before[name])]) for name in before)
    new = body.get_input_embeddings().weight[50:]
    assert float(new.std()) == pytest.approx(float(before[min(longer)].std()), rel=0.4)


@pytest.mark.parametrize("body", bodies(), ids=lambda body: type(body).__name__)
def test_another_source_is_read_with_its_embedding_and_the_rows_of_layouts(body):
    other = copy.deepcopy(body)
    other.resize_token_embeddings(30, mean_resizing=False)
    for module in {other.get_input_embeddings(), other.get_output_embeddings()}:
        nn.init.normal_(module.weight)
    add_rows(body, torch.Generator().manual_seed(0))
    model = fine_tuned(body.eval(), others={"other": embeddings(other)}).eval()
    ours = batch(two_samples())
    theirs = batch([Sample([[30, 3, 4, 32]], {}, 1), Sample([[30, 7, 32]], {}, 0)], "other")
    before, found = model.eval_forward(ours), model.eval_forward(theirs)

    add_rows(other, torch.Generator())
    with torch.no_grad():
        of_layouts = body.get_input_embeddings().weight[50:]
        other.get_input_embeddings().weight[30:] = of_layouts
    hidden = other.eval()(
        input_ids=theirs["input_ids"][:, 0],
        attention_mask=theirs["attention_mask"][:, 0],
        output_hidden_states=True,
    ).hidden_states[-1]
    expected = model.head(hidden[[0, 1], [3, 2]])
    torch.testing.assert_close(found, expected)
    assert torch.equal(model.eval_forward(ours), before) and not torch.allclose(before, found)


@pytest.mark.parametrize("body", bodies(), ids=lambda body: type(body).__name__)
def test_the_head_reads_the_last_token_whatever_the_padding(body):
    add_rows(body, torch.Generator().manual_seed(0))
    model = fine_tuned(body.eval()).eval()
    together = batch(two_samples())
    scores, _ = model(together)
    for sample, expected in zip(two_samples(), scores, strict=True):
        torch.testing.assert_close(model(batch([sample]))[0][0], expected)
        out = body(torch.tensor(sample.sequences), output_hidden_states=True)
        torch.testing.assert_close(model.head(out.hidden_states[-1][0, -1]), expected)
    longer = {k: F.pad(v, (0, 3)) if k != "labels" else v for k, v in together.items()}
    torch.testing.assert_close(model(longer)[0], scores)


def test_the_last_token_is_found_by_the_mask():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])  # padded on the right, and on the left
    assert last_token(hidden, mask).tolist() == [hidden[0, 1].tolist(), hidden[1, 3].tolist()]


def test_the_language_models_loss_leaves_padding_out():
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    pairs = [(0, 0), (0, 1), (1, 2)]  # row and place of what is followed by a token
    expected = -sum(logits[r, p].log_softmax(0)[ids[r, p + 1]] for r, p in pairs) / 3
    torch.testing.assert_close(language_model_loss(logits, ids, mask), expected)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("classification", 2), ("similarity", 0), ("similarity", 3), ("choice", 2)],
)
def test_losses_are_those_of_a_few_lines(kind, classes):
    body = next(bodies())
    add_rows(body, torch.Generator().manual_seed(0))
    model = fine_tuned(body, kind, classes, lm_coef=0.25, mean=2.0)
    of = batch(two_samples(kind))
    of["labels"] = of["labels"] if classes else of["labels"].float()
    losses, language = [], []
    for sample, label in zip(two_samples(kind), of["labels"], strict=True):
        read = []
        for sequence in sample.sequences:
            out = body(torch.tensor([sequence]), output_hidden_states=True)
            read.append(out.hidden_states[-1][0, -1])
            targets = torch.tensor(sequence[1:])
            language.append(F.cross_entropy(out.logits[0, :-1], targets, reduction="none"))
        if kind == "choice":
            losses.append(-torch.cat([model.head(r) for r in read]).log_softmax(0)[label])
        elif classes:
            losses.append(-model.head(sum(read)).log_softmax(0)[label])
        else:
            losses.append((model.head(sum(read))[0] - label) ** 2)
    expected = torch.stack(losses).mean() + 0.25 * torch.cat(language).mean()
    torch.testing.assert_close(model.loss(model(of), of), expected)
    if not classes:
        assert float(model.head.bias) == 2.0


def test_tokens_are_hidden_from_the_body_in_training_only_and_never_those_of_the_layout():
    body = next(bodies())
    add_rows(body, torch.Generator().manual_seed(0))
    model = fine_tuned(body, token_dropout=0.999)
    embed, ids = body.get_input_embeddings(), torch.tensor([[50, 3, 4, 51, 5, 52]])
    seen = embed(ids)[0].abs().sum(dim=1) > 0
    assert seen.tolist() == [True, False, False, True, False, True]
    model.eval()
    assert torch.equal(embed(ids), F.embedding(ids, embed.weight))


def test_metrics_are_those_of_torchmetrics_by_hand():
    body = next(bodies())
    add_rows(body, torch.Generator().manual_seed(0))
    estimates, labels = torch.tensor([0.1, 0.4, 0.3, 2.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = {}
    for classes, outputs in ((0, estimates), (3, torch.eye(3)[[0, 1, 1, 2]])):
        for name, metric in fine_tuned(body, "similarity", classes).get_metrics().items():
            of = {"labels": labels if not classes else torch.tensor([0, 1, 2, 2])}
            fine_tuned(body).update_metric(of, outputs, metric)
            found[name] = float(metric.compute())
    pearson = torch.corrcoef(torch.stack([estimates, labels]))[0, 1]
    ranks = torch.corrcoef(torch.tensor([[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]]))[0, 1]
    assert found == pytest.approx(
        {"pearson": float(pearson), "spearman": float(ranks), "accuracy": 0.75}
    )


def test_gains_and_biases_are_not_decayed():
    groups = decayed(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), 0.1)
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 1), (0.0, 3)]


def test_a_sequence_is_no_longer_than_the_model_reads():
    model = SimpleNamespace(config=SimpleNamespace(max_seq_len=16))
    assert sequence_limit(model, None) == 16 and sequence_limit(model, 8) == 8
    with pytest.raises(ConfigError, match="max_length is 17, and the model reads 16 tokens"):
        sequence_limit(model, 17)
    with pytest.raises(ConfigError, match="max_length is not set"):
        sequence_limit(SimpleNamespace(config=SimpleNamespace()), None)


def test_the_best_epoch_is_chosen_without_the_test():
    history = [
        {"epoch": n, "val": {"x": val}, "test": {"x": test}}
        for n, (val, test) in enumerate([(float("nan"), 0.9), (0.5, 0.1), (0.5, 0.8), (0.4, 0.9)])
    ]
    assert best(history, "x")["epoch"] == 1


def test_splits_are_of_the_text_and_of_their_shares():
    found = [split_of(f"text {n}", 0.2, 0.1) for n in range(5000)]
    assert found == [split_of(f"text {n}", 0.2, 0.1) for n in range(5000)]
    shares = {name: found.count(name) / 5000 for name in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.7, "val": 0.2, "test": 0.1}, abs=0.02)


@pytest.mark.parametrize("label", [1, "1", "positive"])
def test_a_label_is_a_name_or_a_number(label):
    task = TaskOptions(**REVIEWS)
    (example,) = examples([{"sentence": "Fine.", "label": label}], task, "rows")
    assert example == Example({"text": "Fine."}, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 1}, r"rows, row 1 lacks the column 'sentence': it has text, label"),
        ({"sentence": "a", "label": -1}, r"row 1 has the label -1: .* often hidden"),
        ({"sentence": "a", "label": "bad"}, "has the label 'bad': task.labels has negative, posi"),
        ({"sentence": None, "label": 1}, "has None in column sentence: it must be text"),
    ],
)
def test_rows_that_are_no_examples_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        examples([row], TaskOptions(**REVIEWS), "rows")


def test_answers_are_a_list_or_columns_of_their_own():
    asked = {"context": "c", "answers": "options", "label": "answer"}
    row = {"c": "x", "options": ["p", "q"], "answer": "B", "b1": "p", "b2": "q"}
    expected = [Example({"context": "x", "answers": ["p", "q"]}, 1)]
    for answers in ("options", ["b1", "b2"]):
        task = TaskOptions("t", "choice", asked | {"answers": answers}, ["A", "B"])
        assert examples([row], task, "rows") == expected
    with pytest.raises(DataError, match=r"has 1 answers and task.labels 2"):
        examples([row | {"options": ["p"]}], TaskOptions("t", "choice", asked, ["A", "B"]), "rows")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1}, "the yaml has no key 'lr'"),
        ({"data": {"trian": "x"}}, "data has no key 'trian': did you mean train"),
        ({"task": REVIEWS | {"kind": "span"}}, "task.kind is 'span': set it to one of"),
        ({"task": REVIEWS | {"columns": {"text": "x"}}}, "task.columns lacks label"),
        ({"task": REVIEWS | {"columns": {"premise": "x"}}}, "task.columns has 'premise'"),
        ({"task": REVIEWS | {"labels": ["a"]}}, "two or more different ones"),
        ({"task": REVIEWS | {"labels": [True, False]}}, "yaml takes yes, no, on, off for truth"),
        ({"dropout": 1.0}, "dropout is 1.0: set it to a number from 0"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr is 'fast': set it to a number"),
        ({"data": {"train": "x", "val_fraction": 0.6, "test_fraction": 0.5}}, "leave nothing"),
    ],
)
def test_a_wrong_yaml_is_refused(change, message):
    given = {"checkpoint": "x", "task": REVIEWS, "data": {"train": "x.jsonl"}}
    read_options(given)
    with pytest.raises(ConfigError, match=message):
        read_options(given | change)


def test_files_of_every_format_give_the_same_examples(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"sentence": f"sentence {n}", "label": n % 2} for n in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for end, comma in ((".csv", ","), (".tsv", "\t")):
        lines = [comma.join(map(str, row.values())) for row in rows]
        (tmp_path / f"x{end}").write_text("\n".join([comma.join(rows[0]), *lines]))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    found = []
    for end in (".jsonl", ".csv", ".tsv", ".parquet"):
        given = {"train": str(tmp_path / f"x{end}"), "val_fraction": 0.2, "test_fraction": 0.2}
        options = read_options({"checkpoint": "x", "task": REVIEWS, "data": given})
        found.append(read_splits(options.data, options.task))
    assert all(splits == found[0] for splits in found)
    assert sum(map(len, found[0].values())) == 60
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "bad.jsonl").write_text("{")
    for name, message in (
        ("none.jsonl", "none.jsonl does not exist: name a file"),
        ("x.json", "x.json has an unknown format"),
        ("bad.jsonl", r"bad.jsonl cannot be read \("),
    ):
        options = read_options(
            {"checkpoint": "x", "task": REVIEWS, "data": {"train": str(tmp_path / name)}}
        )
        with pytest.raises(DataError, match=message):
            read_splits(options.data, options.task)


def test_a_hub_that_is_not_reached_is_one_sentence():
    given = {"hub": "nyu-mll/glue", "config": "sst2", "train": "train"}
    options = read_options({"checkpoint": "x", "task": REVIEWS, "data": given})
    with pytest.raises(DataError, match=r"nyu-mll/glue, train cannot be read .*correct data"):
        read_splits(options.data, options.task)


def test_baselines_know_what_words_tell_and_no_more():
    def of(count, pieces, label):
        return [Example(pieces(n), label(n)) for n in range(count)]

    def said(n):
        return {"text": f"w{n % 7} " + ("good" if n % 3 else "bad")}

    splits = {name: of(90, said, lambda n: int(n % 3 > 0)) for name in ("train", "val", "test")}
    assert majority(splits) == pytest.approx(2 / 3)
    assert bag_of_words(splits, "classification", 2, word_counts(splits["train"])) == 1.0

    def asked(n):
        answers = ["right one", "wrong one"] if n % 2 else ["wrong one", "right one"]
        return {"context": "c", "answers": answers}

    splits = {name: of(40, asked, lambda n: 1 - n % 2) for name in splits}
    assert bag_of_words(splits, "choice", 2, word_counts(splits["train"])) == 1.0

    def pair(n):
        return {"first": "a b", "second": "a b" if n % 2 else "c d"}

    splits = {name: of(40, pair, lambda n: float(n % 2)) for name in splits}
    counts = word_counts(splits["train"])
    assert bag_of_words(splits, "similarity", 0, counts) == pytest.approx(1.0)


def test_labelled_text_of_packages_is_rows_and_what_is_there_stays(tmp_path, capsys):
    table = '1\t2.27\tIt "works".\r\n2\t-0.6\tWell\r\n3\t-1.0\t Too long \r\n'
    assert list(rated(table)) == [
        {"sentence": 'It "works".', "label": 1},
        {"sentence": "Too long", "label": 0},
    ]
    files = [
        ("x/data/tech/1.txt", b"A\n\nb"),
        ("x/data/tech/2.txt", b"A b"),
        ("x/p/3.txt", b"\xa3"),
    ]
    assert list(sections(files)) == [
        {"text": "A b", "label": "tech"},
        {"text": "\ufffd", "label": "p"},
    ]
    for name in ("movies", "news"):
        path = tmp_path / "data" / "downstream" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert prepare_downstream(["--root", str(tmp_path)]) == 0
    assert path.read_text() == "mine" and "exists already" in capsys.readouterr().out


def test_the_yamls_of_the_repository_are_understood():
    tasks = {}
    for path in sorted(Path(__file__).parents[2].joinpath("eval/yamls/finetune").glob("*.yaml")):
        if path.stem in ("base", "small"):
            continue
        options = read_options(extends.resolve(extends.load(path, ["checkpoint=x"])))
        assert options.lm_coef >= 0 and options.source is None
        tasks[options.task.name] = (options.task.kind, options.optimizer.lr, options.data.hub)
    glue, radford = "nyu-mll/glue", 6.25e-5
    assert {name: tasks[name] for name in ("SST-2", "MNLI", "STS-B", "RACE")} == {
        "SST-2": ("classification", radford, glue),
        "MNLI": ("entailment", radford, glue),
        "STS-B": ("similarity", radford, glue),
        "RACE": ("choice", radford, "ehovy/race"),
    }
    assert {"movies", "news"} < tasks.keys()
