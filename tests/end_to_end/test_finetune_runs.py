"""Fine-tuning as a user starts it: the real trainer, on small tasks of every kind."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from training import REPOSITORY, train
from transformers import AutoTokenizer, MptConfig, MptForCausalLM

from dept.evaluation import finetune
from dept.evaluation.models.source_models import TrainedRun

pytestmark = pytest.mark.end_to_end

WORDS = ["the", "old", "house", "by", "a", "river", "has", "two", "doors", "and", "no", "roof"]


def text(n, *more):
    """Some words that say nothing, and some that do."""
    return " ".join([*random.Random(n).choices(WORDS, k=6), *more])


def rows(kind, n):
    if kind == "classification":
        return {"text": text(n, ("bad", "good")[n % 2]), "label": ("minus", "plus")[n % 2]}
    if kind == "entailment":
        said = ("nothing", "everything", "something")[n % 3]
        return {"premise": text(n), "hypothesis": said, "label": n % 3}
    if kind == "similarity":
        return {"first": text(n), "second": " ".join(["far"] * (n % 5)), "label": float(n % 5)}
    answers = ["false", "wrong", "not so"]
    answers[n % 3] = "true"
    return {"context": text(n), "question": "Which?", "answers": answers, "label": "ABC"[n % 3]}


LABELS = {
    "classification": "[minus, plus]",
    "entailment": "[a, b, c]",
    "similarity": "null",
    "choice": "[A, B, C]",
}


@pytest.fixture(scope="module")
def root(prepared, tmp_path_factory):
    """A folder with tasks, and an untrained model that reads the tokens of the small corpus."""
    root = tmp_path_factory.mktemp("finetune")
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizers" / "tiny" / "global")
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}
    MptForCausalLM(MptConfig(**shape, vocab_size=len(tokenizer))).save_pretrained(root / "body")
    tokenizer.save_pretrained(root / "body")
    for kind, labels in LABELS.items():
        made = [rows(kind, n) for n in range(240)]
        (root / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, made)))
        columns = {name: name for name in made[0]}
        (root / f"{kind}.yaml").write_text(
            f"extends: {REPOSITORY}/eval/yamls/finetune/small.yaml\n"
            f"checkpoint: {root}/body\nfolder: {root}/runs/{{run_name}}\n"
            f"max_duration: 4ep\nglobal_train_batch_size: 8\noptimizer: {{lr: 3.0e-3}}\n"
            f"task: {{name: {kind}, kind: {kind}, columns: {json.dumps(columns)}, "
            f"labels: {labels}}}\n"
            f"data: {{train: {root}/{kind}.jsonl}}\n"
        )
    return root


def run(root, kind, name, *more):
    assert finetune.main([str(root / f"{kind}.yaml"), f"run_name={name}", *more]) == 0
    return json.loads((root / "runs" / name / "summary.json").read_text())


@pytest.mark.parametrize("kind", LABELS)
def test_a_small_task_of_each_kind_is_learned(root, kind, capsys):
    summary = run(root, kind, kind)
    metric = "pearson" if kind == "similarity" else "accuracy"
    assert summary["metric"] == metric and len(summary["history"]) == 4
    assert summary["test"][metric] > 0.9
    assert (
        summary["baselines"].get("majority", 0.0) < 0.7 and sum(summary["examples"].values()) == 240
    )
    assert f"{summary['test'][metric]:.3f}" in capsys.readouterr().out
    best = max(entry["val"][metric] for entry in summary["history"])
    assert summary["best"]["val"][metric] == best


def test_a_killed_run_goes_on_to_the_same_numbers_and_a_finished_one_is_told(root, capsys):
    more = ["save_interval=5ba", "token_dropout=0.2", "dropout=0.2", "max_duration=2ep"]
    whole = run(root, "classification", "whole", *more)
    command = [sys.executable, "eval/finetune.py", str(root / "classification.yaml")]
    process = subprocess.Popen(
        [*command, "run_name=killed", *more], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    checkpoints = root / "runs" / "killed" / "checkpoints"
    while not any(path.name > "ep0-ba5" for path in checkpoints.glob("ep0-ba*.pt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "runs" / "killed" / "summary.json").exists()
    gone_on = run(root, "classification", "killed", *more)
    assert gone_on["history"] == whole["history"] and len(whole["history"]) == 2

    def losses(name):
        lines = (root / "runs" / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [line["loss/train/total"] for line in found if "loss/train/total" in line]

    assert losses("killed") == losses("whole")
    capsys.readouterr()
    assert run(root, "classification", "killed", *more) == gone_on
    assert "is finished; another run_name trains again" in capsys.readouterr().err


def test_the_seed_decides(root):
    more = ["max_duration=3ba", "optimizer.lr=1e-3"]
    results = [
        run(root, "similarity", f"seed-{n}", *more, f"seed={s}") for n, s in enumerate((1, 1, 2))
    ]
    one, again, other = [result["history"] for result in results]
    assert one == again != other
    untrained = run(root, "similarity", "anew", *more, "init=random", "seed=1")
    assert untrained["history"] != one and untrained["init"] == "random"


def test_the_head_reads_other_sources_with_their_own_embeddings(prepared, root):
    """What the run reports is what the checkpoint gives with a source's model in plain torch."""
    positions = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
    train(prepared, "dept_spec", "run_name=transfer", "max_duration=1ep", *positions)
    checkpoint = prepared / "runs" / "transfer" / "checkpoints"
    file = root / "classification.jsonl"
    given = [f"checkpoint={checkpoint}", "source=manual", "max_duration=4ep"]
    given += [
        "optimizer.lr=0.01",
        "frozen_embedding=true",
        f"data.transfer={{code: {file}, tools: {file}}}",
    ]
    summary = run(root, "classification", "transfer", *given)
    assert summary["transfer"].keys() == {"code", "tools"}
    path = root / "runs" / "transfer" / "checkpoints" / "latest-rank0.pt"
    state = torch.load(path, weights_only=False)["state"]["model"]
    learned = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    before = TrainedRun(checkpoint).model("manual").model.state_dict()
    rows = len(before["transformer.wte.weight"])
    assert torch.equal(learned["transformer.wte.weight"][:rows], before["transformer.wte.weight"])
    assert torch.equal(learned["transformer.wpe.weight"], before["transformer.wpe.weight"])
    moved = [n for n in before if not torch.equal(before[n], learned[n][: len(before[n])])]
    assert moved and not any(name.startswith(("transformer.w", "lm_head")) for name in moved)
    assert summary["transfer"] == {name: summary["best"][name] for name in ("code", "tools")}
    for name in ("code", "tools"):
        of_source = TrainedRun(checkpoint).model(name)
        own = of_source.model.state_dict()
        kept = {n: v for n, v in learned.items() if not n.startswith(("transformer.w", "lm_head"))}
        of_source.model.load_state_dict({**own, **kept})
        special = learned["transformer.wte.weight"][rows:]
        count = len(own["transformer.wte.weight"])
        of_source.model.resize_token_embeddings(count + 3, mean_resizing=False)
        of_source.model.get_input_embeddings().weight.data[count:] = special
        right = 0
        for line in lines:
            ids = of_source.tokenizer(line["text"], add_special_tokens=False).input_ids[:30]
            ids = torch.tensor([[count, *ids, count + 2]])
            with torch.no_grad():
                hidden = of_source.model(ids, output_hidden_states=True).hidden_states[-1]
                scores = hidden[0, -1] @ state["head.weight"].T + state["head.bias"]
            right += int(scores.argmax()) == ["minus", "plus"].index(line["label"])
        reported = summary["history"][-1][name]["accuracy"]  # the checkpoint is the last one
        assert reported == pytest.approx(right / len(lines), abs=1e-6)


def test_one_embedding_reads_all_languages(root):
    file = root / "classification.jsonl"
    more = [f"data.test={file}", f"data.transfer={{any: {file}}}", "max_duration=1ep"]
    summary = run(root, "classification", "one-embedding", *more)
    assert summary["transfer"]["any"] == summary["test"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["max_duration=1ep"], "holds a run with max_duration = 4ep, the yaml says 1ep"),
        (["data.train=nowhere.jsonl", "run_name=x"], "nowhere.jsonl does not exist: name a file"),
        (["task.columns.text=body", "run_name=x"], "lacks the column 'body': it has text, label"),
        (
            ["task.labels=[plus, maybe]", "run_name=x"],
            "has the label 'minus': task.labels has plus",
        ),
        (["checkpoint=runs/none/checkpoints", "run_name=x"], "is not a checkpoint, nor a folder"),
        (["max_length=64", "run_name=x"], "max_length is 64, and the model reads 32 tokens"),
        (["learning_rate=1", "run_name=x"], "has no key 'learning_rate'"),
        (["data.transfer={test: x.jsonl}", "run_name=x"], "it takes the names of sources"),
        (["data.transfer={epoch: x.jsonl}", "run_name=x"], "it takes the names of sources"),
        (["data.transfer={it: 3}", "run_name=x"], "data.transfer.it is 3: name a file or a split"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(root, capsys, more, message):
    path = str(root / "classification.yaml")
    assert finetune.main([path, "run_name=classification", *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith(path) and message in told[0]
