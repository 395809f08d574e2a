"""In-context-learning tasks: of a checkpoint, of other models, and while a run trains."""

import pytest
from training import REPOSITORY, load

from dept.config import extends
from dept.config.icl import check_embedding, check_files, is_task
from dept.config.options import DeptOptions
from dept.errors import ConfigError
from dept.evaluation import eval as command

YAML = str(REPOSITORY / "eval/yamls/gauntlet.yaml")
SOURCES = ("manual", "code", "mail", "tools")


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
