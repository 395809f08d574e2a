"""What `train.py` refuses, before anything slow is imported."""

import sys

from training import REPOSITORY, overrides

from dept.training import arguments

SIZES = ["model.d_model=32", "algorithms.dept.local_steps=2", "global_train_batch_size=2"]


def refusal(root, capsys, monkeypatch, experiment, *more):
    """What `train.py` says, which must be one line, said before llm-foundry is imported."""
    monkeypatch.chdir(root)
    for heavy in ("llmfoundry", "composer"):
        monkeypatch.setitem(sys.modules, heavy, None)
    path = str(REPOSITORY / "yamls" / f"{experiment}.yaml")
    small = SIZES if experiment.startswith("dept") else []
    assert arguments.main([path, *overrides(root), *small, *more]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(path)
    return said
