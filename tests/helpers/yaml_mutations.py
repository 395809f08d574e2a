"""Yamls with mistakes in them: keys that nobody knows, and values that nobody meant."""

import copy
import math

from experiments import resolved
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from training import MPT, overrides

from dept.config import complete as configs
from dept.config import extends
from dept.costs import machine
from dept.errors import ConfigError, DataError
from dept.training.on_machine import choose

FAST = settings(
    derandomize=True,
    max_examples=120,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
EXPERIMENTS = ("dept_spec", "dept_trim", "dept_spec_opt", "dept_spec_llama", "std", "act")
# What is mistyped most, huge, negative, of another type.
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 10**30, -(10**30)]),
    st.sampled_from([0.5, -0.5, 1e30, 1e-30, math.nan, math.inf, [0.9, 0.95], [0.9, 2]]),
    st.sampled_from([[], [1], ["code"], [None], {}, {"x": 1}, {1: 2}, {"name": "x"}, [[]]]),
    st.sampled_from(
        [
            "",
            *[
                "x",
                "-1",
                "1ep",
                "0ep",
                "-1ep",
                "3ba",
                "0.5dur",
                "2dur",
                "1e3ep",
                "nan",
                "null",
                "1gb",
                "../..",
                "/",
                "{x}",
            ],
        ]
    ),
    st.sampled_from(["10 ep", "{run_name}", "code", "held", "global", "torch", "\0", "x" * 5000]),
    st.integers(-5, 70),
    st.floats(allow_nan=False, width=32),
    st.text(max_size=8),
)
KEYS = st.sampled_from(["x", "lrr", "name", "variant", "", "max_duratoin", "lr", "seed", "folder"])


def plain(root, tmp_path, experiment):
    """A small experiment on the corpus ``tiny``, as plain containers."""
    small = [] if "llama" in experiment else MPT
    more = [] if experiment.startswith("dept") else ["variables.local_steps=3"]
    more += ["algorithms.dept.local_steps=3"] if experiment.startswith("dept") else []
    more += ["global_train_batch_size=2", "max_duration=1ep", f"run_name=fuzz-{experiment}"]
    return extends.resolve(resolved(experiment, tmp_path, *overrides(root), *small, *more))


def paths(node, above=()):
    """The keys of every value in a yaml, those of sections too."""
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


@st.composite
def mutations(draw, config):
    """A yaml with one or two mistakes, and what they are."""
    config, done = copy.deepcopy(config), []
    for _ in range(draw(st.integers(1, 2))):
        # Most keys are deep in the tree, most mistakes are not: draw the depth first.
        known = [path for path in paths(config) if path[0] != "variables"]
        depth = draw(st.sampled_from(sorted({len(path) for path in known})))
        path = draw(st.sampled_from([path for path in known if len(path) == depth]))
        kind = draw(st.sampled_from(["set", "set", "set", "remove", "add"]))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        if kind == "add":
            path = (*path[:-1], draw(KEYS))
        if kind == "remove":
            del parent[path[-1]]
        else:
            parent[path[-1]] = copy.deepcopy(draw(VALUES))
        done.append((kind, ".".join(map(str, path)), parent.get(path[-1])))
    return config, done


def outcome(config):
    """The sentence that `train.py` refuses a yaml with; ``None`` if it does not."""
    try:
        configs.check(config)
        choose(config)
        machine.check(config)
        configs.complete(copy.deepcopy(config))
    except (ConfigError, DataError) as error:
        return str(error)
    return None


def assert_is_a_sentence(said):
    assert said.count("\n") == 0 and 10 < len(said) < 1000, said
    assert "Traceback" not in said
