"""In-context-learning tasks: of a checkpoint, of other models, and while a run trains."""

import json

import icl_tasks
import pytest
import torch
from training import REPOSITORY, load, train

from dept.config import extends
from dept.config.icl import check_embedding, check_files, is_task
from dept.config.options import DeptOptions
from dept.errors import ConfigError
from dept.evaluation import eval as command

YAML = str(REPOSITORY / "eval/yamls/gauntlet.yaml")
SOURCES = ("manual", "code", "mail", "tools")
OWN = ["algorithms.dept.icl_source=code"]
VARIANTS = {"dept_spec": OWN, "dept_spec_opt": OWN, "dept_trim": [], "std": []}


def test_text_of_a_loader_is_no_task():
    labels = {"eval/en": False, "eval": False, "copa/0-shot": True, "en/3-shot/one": True}
    assert {label: is_task(label) for label in labels} == labels


def test_a_missing_task_file_is_named_before_anything_is_imported(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"the file of x, no/x.jsonl, does not exist: set"):
        check_files([{"label": "x", "dataset_uri": "no/x.jsonl"}])
    check_files([{"label": "x", "dataset_uri": "s3://bucket/x.jsonl"}])
    checkpoint = tmp_path / "run" / "checkpoints" / "ep1-ba1-rank0.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert command.main([YAML, f"checkpoint={checkpoint}", f"gauntlet_root={tmp_path}"]) == 2
    assert "arc_easy.jsonl, does not exist: set variables.gauntlet_root" in capsys.readouterr().err
    assert command.main([YAML, f"checkpoint={checkpoint}"]) == 2
    assert "variables.gauntlet_root is not set" in capsys.readouterr().err


def test_results_go_beside_the_run_and_over_nothing(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "ep1-ba1-rank0.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()

    def output(**variables):
        return command.output_of({"variables": variables})

    path = output(checkpoint=checkpoint.parent, source="en")
    assert path == tmp_path / "run" / "gauntlet-en.json"
    path.touch()
    with pytest.raises(ConfigError, match=r"gauntlet-en.json exists already: remove it, or set"):
        output(checkpoint=checkpoint, source="en")
    assert output(checkpoint=checkpoint).name == "gauntlet-global.json"
    with pytest.raises(ConfigError, match="gpt2 is not a checkpoint of a run, which would"):
        output(checkpoint="gpt2")
    assert output(checkpoint="gpt2", output=f"{tmp_path}/x.json").name == "x.json"


def test_tasks_that_no_embedding_can_read_are_refused():
    def refuse(message, variant, source, kind="schema"):
        options = DeptOptions(variant=variant, local_steps=1, icl_source=source)
        with pytest.raises(ConfigError, match=message):
            check_embedding([{"label": "x", "icl_task_type": kind}], options, SOURCES)

    refuse("icl_source is not set, and icl_tasks need the .* set it to one of man", "spec", None)
    refuse("icl_source is 'held', and", "spec_opt", "held")
    refuse("icl_source is 'code', but trim has a global embedding", "trim", "code")
    refuse("x is of type generation_task.*eval/eval.py", "spec", "code", "generation_task")


def test_a_train_yaml_may_name_a_file_of_tasks(prepared, tmp_path):
    (tmp_path / "tasks.yaml").write_text("icl_tasks: [{label: x, dataset_uri: gone.jsonl}]\n")
    with pytest.raises(ConfigError, match=r"the file of x, gone.jsonl, does not exist"):
        load(prepared, "dept_trim", f"icl_tasks={tmp_path}/tasks.yaml")
    with pytest.raises(ConfigError, match=r"icl_tasks is gone.yaml, which is no yaml with"):
        load(prepared, "dept_trim", "icl_tasks=gone.yaml")


@pytest.mark.parametrize(("name", "count"), [("gauntlet", 9), ("gauntlet_2048", 11)])
def test_every_task_is_in_a_category(name, count, tmp_path):
    given = [f"variables.{key}={tmp_path}" for key in ("checkpoint", "gauntlet_root")]
    config = extends.resolve(extends.load(REPOSITORY / f"eval/yamls/{name}.yaml", given))
    tasks = {(task["label"], *task["num_fewshot"]) for task in config["icl_tasks"]}
    categories = config["eval_gauntlet"]["categories"]
    summed = [(b["name"], b["num_fewshot"]) for c in categories for b in c["benchmarks"]]
    assert len(summed) == len(tasks) == count and {*summed} == tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return icl_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def trained(prepared, folder):
    """Runs that evaluated tasks in training, by experiment: their folders."""
    runs = {}
    for experiment, more in VARIANTS.items():
        steps = ["variables.local_steps=3", "variables.mixture_batch=4", "max_duration=2ep"]
        options = [*steps, *more, *icl_tasks.in_training(folder), f"run_name=icl-{experiment}"]
        train(prepared, experiment, *options)
        runs[experiment] = prepared / "runs" / f"icl-{experiment}"
    return runs


def in_training(run):
    """What the last evaluation of a run logged of tasks."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for line in lines:
        found |= {key: value for key, value in line.items() if "metrics/" in key}
    accuracy = {key.split("/")[1]: value for key, value in found.items() if "-shot/" in key}
    return accuracy, found["icl/metrics/eval_gauntlet/all"]


def evaluate(folder, *overrides):
    options = [f"gauntlet_root={folder}", *icl_tasks.OPTIONS, "max_seq_len=32", *overrides]
    assert command.main([YAML, *options]) == 0


@pytest.mark.end_to_end
@pytest.mark.parametrize("experiment", VARIANTS)
def test_training_a_checkpoint_and_the_definition_agree(trained, folder, experiment, capsys):
    from dept.evaluation.models.source_models import TrainedRun

    run, source = trained[experiment], "code" if "spec" in experiment else None
    checkpoints = run / "checkpoints"
    loaded = TrainedRun(checkpoints).model(source)
    right = icl_tasks.expected(loaded.model, loaded.tokenizer)
    assert len({*right.values()}) > 1  # something could go wrong
    accuracy, score = in_training(run)
    assert accuracy == pytest.approx(right)
    copa, winograd = (right["copa"] - 0.25) / 0.75, (right["winograd"] - 0.5) / 0.5
    assert score == pytest.approx((copa + winograd) / 2)
    chosen = [f"source={source}"] if source else []
    evaluate(folder, f"checkpoint={checkpoints}", *chosen)
    (record,) = json.loads((run / f"gauntlet-{source or 'global'}.json").read_text())
    tasks = {task["task"]: task for task in record["tasks"]}
    for label, name in (("copa", "copa"), ("winograd", "winograd"), ("lambada_openai", "lambada")):
        assert tasks[f"{label}/0-shot"]["value"] == pytest.approx(right[name])
    assert tasks["copa/0-shot"]["questions"] == 24 and len(tasks) == 10  # jeopardy's categories
    categories = {task["category"] for task in record["tasks"]}
    assert {*record["scores"]} == categories | {"default_average"}
    assert record["parameters"] == loaded.parameters
    assert "24" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_a_directory_of_transformers_is_evaluated_as_its_checkpoint(trained, folder, tmp_path):
    """And by llm-foundry's own hf_causal_lm, beside it."""
    from dept.evaluation.models.source_models import load as load_model

    loaded = load_model(trained["dept_spec"] / "checkpoints", "code")
    exported = tmp_path / "exported"
    loaded.model.save_pretrained(exported)
    loaded.tokenizer.save_pretrained(exported)
    tokenizer = f"tokenizer: {{name: {exported}, kwargs: {{model_max_length: 32}}}}"
    (tmp_path / "both.yaml").write_text(
        f"extends: {YAML}\nmodels:\n"
        f"- model_name: ours\n  model: {{name: source_model, checkpoint: {exported}}}\n"
        f"  {tokenizer}\n"
        f"- model_name: theirs\n  {tokenizer}\n"
        f"  model: {{name: hf_causal_lm, pretrained_model_name_or_path: {exported}}}\n"
    )
    output = [f"output={tmp_path}/both.json", f"checkpoint={exported}", f"gauntlet_root={folder}"]
    options = [*output, *icl_tasks.OPTIONS, "max_seq_len=32"]
    assert command.main([str(tmp_path / "both.yaml"), *options]) == 0
    ours, theirs = json.loads((tmp_path / "both.json").read_text())
    assert (ours["model"], theirs["model"]) == ("ours", "theirs")
    assert ours["tasks"] == theirs["tasks"] and ours["scores"] == theirs["scores"]
    right = icl_tasks.expected(loaded.model, loaded.tokenizer)
    values = {task["task"]: task["value"] for task in ours["tasks"]}
    assert values["copa/0-shot"] == pytest.approx(right["copa"])


@pytest.mark.end_to_end
def test_answers_are_generated_with_the_tokenizer_of_the_source(trained, tmp_path):
    """Two of three answers are what the model says, so two of three are right."""
    from dept.evaluation.models.source_models import load as load_model

    checkpoints = trained["dept_spec_opt"] / "checkpoints"
    loaded, rows = load_model(checkpoints, "code"), []
    for question in (row["query"] for row in icl_tasks.CHOICES):
        ids = torch.tensor([loaded.tokenizer(question, add_special_tokens=False).input_ids])
        with torch.no_grad():
            says = loaded.model(input_ids=ids).logits[0, -1, 4:].argmax() + 4  # nothing special
        text = loaded.tokenizer.decode(says)
        rows += [{"context": question, "answer": text}] if text.strip() else []
    rows = [*rows[:2], {"context": "a name in", "answer": "zygote"}]
    assert len(rows) == 3
    (tmp_path / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (
        f"icl_tasks=[{{label: say, dataset_uri: {tmp_path}/say.jsonl, num_fewshot: [0], "
        "icl_task_type: generation_task_with_answers, do_normalization: false, "
        "generation_kwargs: {do_sample: false, suppress_tokens: [0, 1, 2, 3]}}]"
    )
    result = tmp_path / "said.json"
    options = [f"checkpoint={checkpoints}", "source=code", f"output={result}", "gauntlet_root=x"]
    assert command.main([YAML, *options, "max_seq_len=32", "eval_gauntlet=null", task]) == 0
    ((said,),) = (record["tasks"] for record in json.loads(result.read_text()))
    assert said["questions"] == 3 and said["value"] == pytest.approx(2 / 3)
    assert said["random_baseline"] is None and said["category"] is None
