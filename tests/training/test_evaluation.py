"""Scores of tokens inside and outside a source's vocabulary."""

import math
from types import SimpleNamespace

import torch

from dept.training.evaluation import own_evaluators, restrict_to_vocabulary, score_unseen_uniformly
from dept.transport.topology import Place

V = 7
LOGITS = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 6, -100], [2, 0, 5]])


def losses(logits, targets):
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    ).reshape(targets.shape)


def test_tokens_of_the_source_compete_among_themselves_and_others_with_all():
    inside = [0, 1, 2, 5]
    holds = torch.tensor([i in inside for i in range(V)])
    result = losses(restrict_to_vocabulary(LOGITS.clone(), TARGETS, holds), TARGETS)
    for i in range(2):
        for j in range(3):
            target, logits = int(TARGETS[i, j]), LOGITS[i, j]
            if target == -100:
                continue
            rivals = logits[inside] if target in inside else logits
            expected = torch.logsumexp(rivals, 0) - logits[target]
            torch.testing.assert_close(result[i, j], expected)


def test_a_token_without_a_row_costs_one_in_the_global_vocabulary():
    unseen = torch.tensor([[True, False, False], [False, False, True]])
    before = losses(LOGITS, TARGETS)
    after = losses(score_unseen_uniformly(LOGITS.clone(), TARGETS, unseen, 8192), TARGETS)
    torch.testing.assert_close(after[unseen], torch.full((2,), math.log(8192)))
    assert torch.equal(after[~unseen], before[~unseen])


def test_nothing_unseen_changes_nothing():
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(score_unseen_uniformly(LOGITS.clone(), TARGETS, none, 8192), LOGITS)


def test_tasks_stay_together_with_their_embedding():
    labels = ["eval/a", "eval/b", "eval/c", "eval/old", "eval/new", "x/0-shot", "x/3-shot/c"]
    every, sources = [SimpleNamespace(label=label) for label in labels], ("a", "b", "c")

    def chosen(worker, icl_source):
        mine = [("a", "b"), ("c",)][worker]
        place = Place(worker=worker, workers=2)
        return [e.label for e in own_evaluators(every, sources, mine, place, icl_source)]

    text = [["eval/a", "eval/b", "eval/old"], ["eval/c", "eval/new"]]
    tasks = ["x/0-shot", "x/3-shot/c"]
    assert [chosen(worker, None) for worker in (0, 1)] == [text[0] + tasks, text[1]]
    assert [chosen(worker, "b") for worker in (0, 1)] == [text[0] + tasks, text[1]]
    assert [chosen(worker, "c") for worker in (0, 1)] == [text[0], text[1] + tasks]
