"""What runs send, against the cost model."""

import json

import pytest
from training import load, train

from dept.config import extends
from dept.costs.experiment import costs_of

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("experiment", "inner_state"),
    [
        ("std", None),
        ("dept_glob", "keep"),
        ("dept_trim", "keep"),
        ("dept_trim", "average"),
        ("dept_spec", "keep"),
        ("dept_spec_opt", "keep"),
    ],
)
def test_a_run_hands_over_what_the_cost_model_says(prepared, experiment, inner_state):
    name = f"costs-{experiment}-{inner_state}"
    more = [f"run_name={name}", f"max_duration={3 if inner_state == 'average' else 1}ep"]
    if inner_state == "average":  # 3 + 1 + 1 exchanges in 3 rounds
        more.append("algorithms.dept.inner_state=average")
        more.append("algorithms.dept.inner_state_interval={exp_avg: 2, exp_avg_sq: 3}")
    more += ["train_loader.epoch_batches=3", "global_train_batch_size=8"] * (experiment == "std")
    if experiment in ("dept_trim", "dept_spec_opt"):
        more.append("algorithms.dept.compression={name: int4, block: 64}")
    if experiment == "dept_spec":
        more.append("algorithms.dept.average={name: median}")
    trainer = train(prepared, experiment, *more)
    path = prepared / "runs" / name / "summary.json"
    counted = json.loads(path.read_text())["communication"]
    expected = costs_of(extends.resolve(load(prepared, experiment, *more)))
    assert counted["parameters_per_step"] == pytest.approx(expected.per_step)
    if experiment == "std":
        assert sum(p.numel() for p in trainer.state.model.parameters()) == expected.total
    else:
        assert counted["reduction"] == pytest.approx(expected.reduction)
        assert counted["bytes_per_exchange"] == pytest.approx(expected.message)
        assert counted["byte_reduction"] == pytest.approx(expected.byte_reduction)
