"""The mean of local models, against means written out."""

import itertools

import pytest
import torch

from dept.method.averaging import Share
from dept.transport.exchange import ExactReduction


def tensors(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def reduce(start, contributions):
    reduction = ExactReduction(start)
    for source, (local, weight, rows) in enumerate(contributions):
        reduction.add(str(source), local, Share(weight, rows or {}))
    return reduction.averages()


def test_mean_and_weighted_mean():
    a, b, c = tensors(3, 5, 4)
    start = {"w": torch.zeros(5, 4)}
    uniform = reduce(start, [({"w": x}, 1.0, None) for x in (a, b, c)])["w"]
    torch.testing.assert_close(uniform.value, torch.stack([a, b, c]).mean(0))
    assert uniform.held is None
    weighted = reduce(start, [({"w": a}, 1.0, None), ({"w": b}, 3.0, None)])["w"]
    torch.testing.assert_close(weighted.value, (a + 3 * b) / 4)


def test_the_mean_of_one_and_of_equals_is_exact():
    (a,) = tensors(1, 1000)
    start = {"w": torch.full((1000,), 7.0)}
    for count, weight in itertools.product((1, 3, 7), (1.0, 12345.0)):
        average = reduce(start, [({"w": a}, weight, None)] * count)["w"]
        assert torch.equal(average.value, a)


def test_the_order_of_sources_does_not_matter():
    values = tensors(8, 10_000)
    start = {"w": torch.zeros(10_000)}
    forward = reduce(start, [({"w": x}, 1.0, None) for x in values])["w"].value
    backward = reduce(start, [({"w": x}, 1.0, None) for x in reversed(values)])["w"].value
    assert torch.equal(forward, backward)


@pytest.mark.parametrize("shape", [(6, 3), (6,)], ids=["matrix", "bias"])
def test_a_row_is_averaged_over_its_holders_and_kept_without_one(shape):
    (start,) = tensors(1, *shape)
    holders = {"en": [0, 2, 3], "it": [0, 3], "zh": [3]}
    locals_ = {
        name: x[: len(holders[name])]
        for name, x in zip(holders, tensors(3, *shape, seed=1), strict=True)
    }
    average = reduce(
        {"phi": start},
        [({"phi": locals_[n]}, 1.0, {"phi": torch.tensor(holders[n])}) for n in holders],
    )["phi"]
    for row in range(6):
        updates = [locals_[n][ids.index(row)] for n, ids in holders.items() if row in ids]
        expected = torch.stack(updates).mean(0) if updates else start[row]
        torch.testing.assert_close(average.value[row], expected)
    assert average.held.tolist() == [True, False, True, True, False, False]
    assert torch.equal(average.value[[1, 4, 5]], start[[1, 4, 5]])


def test_rows_of_everyone_are_the_plain_mean():
    a, b = tensors(2, 6, 3)
    start, rows = {"phi": torch.zeros(6, 3)}, {"phi": torch.arange(6)}
    by_row = reduce(start, [({"phi": a}, 1.0, rows), ({"phi": b}, 1.0, rows)])["phi"].value
    plain = reduce(start, [({"phi": a}, 1.0, None), ({"phi": b}, 1.0, None)])["phi"].value
    assert torch.equal(by_row, plain)


def test_what_cannot_be_averaged_is_refused():
    reduction = ExactReduction({"w": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match=r"w is \(3, 2\), expected \(4, 2\)"):
        reduction.add("one", {"w": torch.zeros(3, 2)}, Share())
    with pytest.raises(ValueError, match="above 0"):
        reduction.add("one", {"w": torch.zeros(4, 2)}, Share(0.0))
