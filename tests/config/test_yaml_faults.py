"""Any mistake in a yaml is success, or one sentence of ours before anything slow is imported."""

import sys
from types import SimpleNamespace

import pytest
from experiments import YAMLS
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import ValidationError
from training import overrides
from yaml_mutations import EXPERIMENTS, FAST, assert_is_a_sentence, mutations, outcome, plain

from dept.config import extends
from dept.errors import ConfigError
from dept.training import build_errors


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_any_mistake_is_a_sentence(prepared, tmp_path, monkeypatch, experiment):
    for heavy in ("llmfoundry", "composer"):
        monkeypatch.setitem(sys.modules, heavy, None)
    base = plain(prepared, tmp_path, experiment)
    assert outcome(base) is None

    @FAST
    @given(mutations(base))
    def every(mutated):
        config, _ = mutated
        said = outcome(config)
        if said is not None:
            assert_is_a_sentence(said)

    every()


OVERRIDES = st.one_of(
    st.text("abc.=[]{}:,'\"\\${} \t\n-0é", max_size=20),
    st.sampled_from(
        [
            "a",
            "=",
            "=1",
            "model=3",
            "model.d_model.x=1",
            "seed=[",
            "seed={",
            "seed=${seed}",
            "a=${b",
            "model=",
            "model=null",
            "[0]=1",
            "save_folder=${oc.env:NOT_THERE}",
            "seed=${x:1}",
            "callbacks=[1]",
            "algorithms=[dept]",
            "run_name=5",
            "train_loader=sources",
            "seed=!!python/object:x {}",
            "optimizer.lr=1e-3",
            "max_duration=3",
            "variables=null",
            "extends=std.yaml",
        ]
    ),
)


@pytest.mark.parametrize("experiment", ["dept_spec", "std"])
def test_any_override_is_a_sentence(prepared, tmp_path, experiment):
    @settings(FAST, max_examples=80)
    @given(st.lists(OVERRIDES, min_size=1, max_size=2))
    def every(given_overrides):
        path = YAMLS / f"{experiment}.yaml"
        try:
            config = extends.load(path, [*overrides(prepared), *given_overrides])
            plain = extends.resolve(config)
        except ConfigError as error:
            return assert_is_a_sentence(str(error))
        said = outcome(plain)
        return None if said is None else assert_is_a_sentence(said)

    every()


@settings(FAST, max_examples=60)
@given(st.binary(max_size=40) | st.text("ab:-[]{}!&*|> \n\t#'\"%@`?0", max_size=30).map(str.encode))
def test_any_file_is_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        extends.resolve(extends.load(path))
    except ConfigError as error:
        assert_is_a_sentence(str(error))


def test_an_error_of_a_builder_is_one_sentence_with_its_section(monkeypatch):
    monkeypatch.delitem(sys.modules, "dept.training.first_step", raising=False)

    def build_callback(name):
        raise KeyError(f"no such\n\x1bthing as {name}")

    def fit():
        raise RuntimeError("x" * 1000)

    def said(function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            return build_errors.sentence(error, {})

    assert said(build_callback, "norms").startswith("callbacks cannot be built: 'no such")
    assert said(build_callback, "norms").isprintable()
    sentence = said(fit)
    assert sentence.startswith("what the yaml asks for does not take a first step: xxx")
    assert len(sentence) < 600
    first_step = SimpleNamespace(FirstStep=SimpleNamespace(is_taken=True))
    monkeypatch.setitem(sys.modules, "dept.training.first_step", first_step)
    assert said(fit) is None  # the yaml is no longer the cause
    error = ValidationError("not a bool")
    error.full_key = "eval_first"
    assert build_errors.sentence(error, {}).startswith("eval_first cannot be built: not a bool")
