"""What the checks of yamls let through trains, or is refused in one sentence."""

import copy

import pytest
from experiments import YAMLS
from hypothesis import given, settings
from yaml_mutations import EXPERIMENTS, FAST, assert_is_a_sentence, mutations, outcome, plain

from dept.errors import ConfigError, DataError
from dept.training import build_errors

pytestmark = pytest.mark.end_to_end


def those_let_through(base):
    """Yamls with mistakes that nothing refuses, the same ones each time."""
    found = []

    @settings(FAST, max_examples=40)
    @given(mutations(base))
    def every(mutated):
        if outcome(mutated[0]) is None:
            found.append(mutated)

    every()
    return found


def test_what_is_let_through_starts(prepared, tmp_path, monkeypatch, registries):
    """A sample of it with the real trainer, up to the second step."""
    from composer.core import Callback
    from llmfoundry import registry
    from llmfoundry.command_utils import train
    from omegaconf import OmegaConf

    from dept.training import registration

    class StartedError(Exception):
        """The run has come to its second step."""

    class Enough(Callback):
        def batch_end(self, state, logger):
            if state.timestamp.batch.value == 2:
                raise StartedError

    registry.callbacks.register("enough", func=Enough)
    registration.register()
    (tmp_path / "yamls").symlink_to(YAMLS)  # the llama's config is named from there
    monkeypatch.chdir(tmp_path)  # paths are values, too
    started, refused = [], []
    for experiment in EXPERIMENTS:
        let_through = those_let_through(plain(prepared, tmp_path, experiment))
        for config, done in let_through[:: max(1, len(let_through) // 2)][:2]:
            config = copy.deepcopy(config) | {"autoresume": False}
            config["callbacks"] = {**(config.get("callbacks") or {}), "enough": {}}
            try:
                train(OmegaConf.create(config))
            except StartedError:
                started.append(done)
            except (ConfigError, DataError) as error:
                refused.append((done, str(error)))
            except Exception as error:
                refused.append((done, build_errors.sentence(error, config)))
    assert len(started) > 4, refused
    for done, said in refused:  # by llm-foundry, or by what its registries have
        assert_is_a_sentence(said)
        assert any(path.split(".")[0] in said for _, path, _ in done), (done, said)
