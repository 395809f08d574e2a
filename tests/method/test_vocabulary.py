"""Ids and rows."""

import pytest
import torch

from dept.method.vocabulary import IGNORED, VocabularyMap


def build(ids, vocab_size=10, unknown_id=0):
    return VocabularyMap.build(torch.tensor(ids), vocab_size=vocab_size, unknown_id=unknown_id)


def test_rows_are_the_tokens_in_order():
    vocabulary = build([0, 3, 4, 9])
    ids = torch.tensor([[3, 9, 0, 4]])
    rows, labels, unseen = vocabulary.translate(ids, ids)
    assert rows.tolist() == labels.tolist() == [[1, 3, 0, 2]]
    assert not unseen.any()
    assert torch.equal(vocabulary.token_ids[rows], ids)
    assert vocabulary.holds().tolist() == [i in (0, 3, 4, 9) for i in range(10)]


def test_a_token_without_a_row_is_unknown_as_input_and_marked_as_label():
    rows, labels, unseen = build([2, 5], unknown_id=2).translate(
        torch.tensor([[5, 7, 2]]), torch.tensor([[IGNORED, 7, 5]])
    )
    assert rows.tolist() == [[1, 0, 0]]
    assert labels.tolist() == [[IGNORED, 0, 1]]
    assert unseen.tolist() == [[False, True, False]]


def test_all_tokens_are_the_identity():
    assert build(range(10)).is_identity
    assert not build(range(9)).is_identity


@pytest.mark.parametrize("ids", [[3, 1], [1, 1], [-1, 2], [0, 10], []])
def test_ids_that_no_matrix_could_hold_are_refused(ids):
    with pytest.raises(ValueError, match="token ids must be"):
        build(ids, unknown_id=1)


def test_the_unknown_token_must_have_a_row():
    with pytest.raises(ValueError, match="unknown token 7"):
        build([0, 1], unknown_id=7)
