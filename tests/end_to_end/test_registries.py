"""Names in yamls: those known without llm-foundry are those of its registries, and of users."""

import importlib.metadata
import inspect
import re
import sys

import pytest
import torch
from omegaconf import OmegaConf
from training import dept_of, load, tensors_of, train

from dept.config import registries, yaml_keys
from dept.errors import ConfigError
from dept.training import build_errors

OWN = """
import torch
from composer.core import Callback
from llmfoundry import registry


class HalfStep(torch.optim.Optimizer):
    def __init__(self, params, share=0.5):
        super().__init__(params, {"share": share})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["share"] * parameter.grad


class Counts(Callback):
    rounds = 0

    def epoch_end(self, state, logger):
        Counts.rounds += 1


class Fails(Callback):
    def __init__(self, at):
        self.at = at
        self.fail("built")

    def fail(self, now):
        if now == self.at:
            raise ZeroDivisionError(f"nothing can be {now}")

    def batch_start(self, state, logger):
        self.fail("begun")

    def epoch_end(self, state, logger):
        self.fail("ended")
"""
REGISTERS = """
registry.callbacks.register("fails", func=Fails)
registry.optimizers.register("half_step", func=HalfStep)
registry.callbacks.register("counts", func=Counts)
"""
OUTER = "algorithms.dept.outer_optimizer"


@pytest.fixture
def own_file(tmp_path, registries):
    path = tmp_path / "own_names.py"
    path.write_text(OWN + REGISTERS)
    return f"code_paths=[{path}]"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that adds an optimizer and a callback by entry points."""
    (tmp_path / "own_package.py").write_text(OWN)
    about = tmp_path / "own_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[llmfoundry_optimizers]\nhalf_of_package = own_package:HalfStep\n"
        "[llmfoundry_callbacks]\ncounts_of_package = own_package:Counts\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_package", None)


def refused(message):
    return pytest.raises(ConfigError, match=re.escape(message))


def test_names_of_packages_are_known_without_importing_them(prepared, package):
    names = [f"{OUTER}.name=half_of_package", "callbacks.counts_of_package={}"]
    load(prepared, "dept_spec", *names, "optimizer.name=half_of_package")
    assert "own_package" not in sys.modules
    with refused("'count_of_package': did you mean counts_of_package?"):
        load(prepared, "dept_spec", "callbacks.count_of_package={}")
    with refused("'half_of_packag': did you mean half_of_package?"):
        load(prepared, "dept_spec", f"{OUTER}.name=half_of_packag")


def test_names_that_code_paths_may_add_are_left_to_them(prepared, own_file):
    names = ["callbacks.counts={}", "loggers.x={}", "model.name=y", "scheduler.name=z"]
    load(prepared, "dept_spec", own_file, f"{OUTER}.name=half_step", *names)
    load(prepared, "std", own_file, "train_loader={name: mine}")
    with refused("callbacks has no key 'counts': remove it, or write"):
        load(prepared, "dept_spec", "callbacks.counts={}")
    with refused("outer_optimizer.name is 'half_step': set it to one of"):
        load(prepared, "dept_spec", f"{OUTER}.name=half_step")
    with refused("optimizer.name is 5: set it to one of"):
        load(prepared, "dept_spec", own_file, "optimizer.name=5")


@pytest.mark.end_to_end
def test_the_names_known_here_are_those_of_the_registries():
    from llmfoundry import registry

    from dept.training import registration

    registration.register()
    for name, known in registries.BUILT_IN.items():
        there = set(getattr(registry, name).get_all()) - set(registries.INTERNAL)
        # Of this package, for yamls that our own train.py does not read.
        added = {
            point.name for point in importlib.metadata.entry_points(group=f"llmfoundry_{name}")
        }
        assert set(known) <= there and there - set(known) <= added, name


@pytest.mark.end_to_end
def test_the_keys_known_here_are_those_of_llm_foundry():
    from llmfoundry.models.mpt.configuration_mpt import MPTConfig, init_config_defaults
    from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS

    computed = {"device_train_batch_size", "device_train_grad_accum", "n_gpus"}
    assert set(yaml_keys.KEYS) == TRAIN_CONFIG_KEYS - computed
    known = {key for key in yaml_keys.MPT if "." not in key}
    taken = {
        name
        for cls in (MPTConfig, ComposerMPTCausalLM)
        for name in inspect.signature(cls).parameters
    }
    assert known == taken - {"kwargs", "tokenizer"} | {"name", "master_weights_dtype"}
    keys = {key.partition(".")[2] for key in yaml_keys.MPT if key.startswith("init_config.")}
    assert keys >= set(init_config_defaults)


@pytest.mark.end_to_end
def test_ones_own_outer_optimizer_and_callback_train(prepared, own_file, package, monkeypatch):
    import catalogue

    small = ["autoresume=false", "save_folder=null", "run_name=own-names"]
    trainer = train(prepared, "dept_trim", *small, f"{OUTER}={{name: sgd, lr: 0.25}}")
    expected = tensors_of(trainer)
    own = [f"{OUTER}={{name: half_step, share: 0.25}}", "callbacks.counts={}", own_file]
    trainer = train(prepared, "dept_trim", *small, *own)
    assert dept_of(trainer).outer_optimizer.name == "half_step"
    (counts,) = (c for c in trainer.state.callbacks if type(c).__name__ == "Counts")
    assert counts.rounds == 3
    assert all(torch.equal(value, expected[name]) for name, value in tensors_of(trainer).items())

    monkeypatch.setattr(catalogue, "AVAILABLE_ENTRY_POINTS", importlib.metadata.entry_points())
    own = [f"{OUTER}={{name: half_of_package, share: 0.25}}", "callbacks.counts_of_package={}"]
    trainer = train(prepared, "dept_trim", *small, *own)
    assert all(torch.equal(value, expected[name]) for name, value in tensors_of(trainer).items())

    decoupled = tensors_of(train(prepared, "dept_spec", *small, f"{OUTER}.name=decoupled_lionw"))
    assert all(value.isfinite().all() for value in decoupled.values())


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{OUTER}.name=half_stp", "outer_optimizer.name is 'half_stp': did you mean half_step?"),
        (
            f"{OUTER}={{name: half_step, shar: 1}}",
            "outer_optimizer has no key 'shar': did you mean share?",
        ),
        ("callbacks.count={}", "callbacks has no key 'count': did you mean counts?"),
        ("callbacks.counts={x: 1}", "callbacks.counts has no key 'x': remove it"),
        ("optimizer.lrr=1", "optimizer has no key 'lrr': did you mean lr?"),
        ("model.name=mpt_causal", "model.name is 'mpt_causal': did you mean mpt_causal_lm?"),
    ],
)
def test_a_wrong_name_or_option_is_a_sentence_before_anything_is_built(
    prepared, own_file, override, message
):
    with refused(message):
        train(prepared, "dept_spec", own_file, "run_name=wrong-names", override)


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            "{name: decoupled_adamw, lr: 0.001, amsgrad: true}",
            "decoupled_adamw is not just exp_avg",
        ),
        ("{name: decoupled_adamw, lr: 0.001, betas: [0.99, 0.95]}", "betas are 0.99 and 0.95"),
    ],
)
def test_moments_that_cannot_be_averaged_are_refused_before_anything_is_built(
    prepared, optimizer, message
):
    average = "algorithms.dept.inner_state=average"
    with refused(message):
        train(prepared, "dept_spec", "run_name=no-moments", average, f"optimizer={optimizer}")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        ("built", "callbacks.fails cannot be built: nothing can be built (ZeroDivisionError)"),
        ("begun", "callbacks.fails does not take a first step: nothing can be begun"),
        ("ended", None),
    ],
)
def test_an_error_is_a_sentence_with_its_key_until_a_step_is_taken(
    prepared, own_file, at, sentence
):
    override = [own_file, f"callbacks.fails.at={at}", "autoresume=false", "save_folder=null"]
    config = OmegaConf.to_container(load(prepared, "dept_spec", *override), resolve=True)
    with pytest.raises(Exception, match=f"nothing can be {at}") as caught:
        train(prepared, "dept_spec", *override)
    said = build_errors.sentence(caught.value, config)
    assert said is None if sentence is None else said.startswith(sentence)
