"""One run with every logger of ``docs/loggers.md``: the same numbers in the files of each."""

import json
import os
import re
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import DEPT, MPT, REPOSITORY, ROUNDS, overrides
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

pytestmark = pytest.mark.end_to_end

METRICS = ("dept/code/update_norm", "eval/code/loss", "eval/average/bits_per_byte")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A folder in which a run was trained with the loggers of the documentation."""
    folder = tmp_path_factory.mktemp("logged")
    (documented,) = re.findall(
        r"^```yaml\n(loggers:.*?)^```", (REPOSITORY / "docs/loggers.md").read_text(), re.M | re.S
    )
    (folder / "logged.yaml").write_text(f"extends: {REPOSITORY}/yamls/dept_spec.yaml\n{documented}")
    (folder / "data").symlink_to(prepared / "data")
    own = [option.replace(f"{prepared}/runs", "runs") for option in overrides(prepared)]
    command = [sys.executable, str(REPOSITORY / "train.py"), "logged.yaml"]
    command += [*own, *MPT, *DEPT, "run_name=logged"]
    homes = {f"WANDB_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "CACHE", "DATA")}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **homes}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def expected(run):
    """Values by metric, one for each round."""
    lines = [json.loads(x) for x in (run / "logged/metrics.jsonl").read_text().splitlines()]
    found = {name: [line[name] for line in lines if name in line] for name in METRICS}
    assert all(len(values) == ROUNDS for values in found.values())
    return found


def test_the_event_files_of_tensorboard_hold_them(run, expected):
    events = EventAccumulator(str(run / "tensorboard/logged")).Reload()
    for name, values in expected.items():
        # In the order of names of files, of which there are several within a second.
        found = [e.value for e in sorted(events.Scalars(name), key=lambda event: event.step)]
        assert found == pytest.approx(values, rel=1e-6)  # stored in single precision


def test_the_store_of_mlflow_holds_them(run, expected):
    client = MlflowClient(f"file:{run}/mlflow")
    experiment = client.get_experiment_by_name("dept")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("logged", "FINISHED")
    assert found.data.params["seed"] == "17"
    for name, values in expected.items():
        assert [m.value for m in client.get_metric_history(found.info.run_id, name)] == values


def test_the_offline_run_of_wandb_holds_them(run, expected):
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    store, found = DataStore(), {name: [] for name in METRICS}
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record.FromString(data)
        for item in record.history.item:
            name = item.key or ".".join(item.nested_key)
            if name in found:
                found[name].append(json.loads(item.value_json))
    assert found == expected


def test_the_text_log_holds_them(run, expected):
    text = (run / "logged/log-rank0.txt").read_text()
    for name, values in expected.items():
        found = re.findall(rf"^\[metric\]\[batch=\d+\]: {re.escape(name)}: (\S+)", text, re.M)
        assert [float(value) for value in found] == pytest.approx(values, abs=1e-4)
    assert "[hyperparameter]: seed: 17" in text
