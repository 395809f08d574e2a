"""Norms and cosines of updates."""

import pytest
import torch

from dept.method import updates


def update(seed, size):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(size, generator=generator)
    return {"a": flat[: size // 3].reshape(1, -1), "b": flat[size // 3 :]}


def flat(value):
    return torch.cat([value["a"].flatten(), value["b"]])


def test_norm_is_that_of_all_coordinates():
    assert updates.norm(update(0, 999)) == pytest.approx(float(flat(update(0, 999)).norm()))


@pytest.mark.parametrize(("size", "tolerance"), [(3000, 1e-6), (1_000_000, 0.02)])
def test_a_sketch_keeps_cosines(size, tolerance):
    first, second = update(0, size), update(1, size)
    second = {key: 0.5 * first[key] + second[key] for key in first}
    sketches = {"en": updates.sketch(first), "it": updates.sketch(second)}
    true = torch.nn.functional.cosine_similarity(flat(first), flat(second), dim=0)
    assert updates.cosines(sketches)["en", "it"] == pytest.approx(float(true), abs=tolerance)


def test_an_update_of_nothing_has_no_direction():
    zero = {"a": torch.zeros(1, 3), "b": torch.zeros(6)}
    sketches = {"en": updates.sketch(update(0, 9)), "it": updates.sketch(zero)}
    assert updates.cosines(sketches) == {("en", "it"): 0.0}


def test_a_sketch_adds_each_coordinate_with_its_sign_to_its_bucket():
    size = 4
    found = updates.sketch(update(3, 10), seed=5, size=size)
    generator = torch.Generator().manual_seed(5)
    signs = torch.randint(0, 2, (10,), generator=generator, dtype=torch.int8)
    expected = [0.0] * size
    for i, (value, sign) in enumerate(zip(flat(update(3, 10)).tolist(), signs, strict=True)):
        expected[i % size] += value if sign else -value
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_sketch_leaves_the_update_as_it_was():
    given = {"a": update(0, 9)["b"]}
    before = given["a"].clone()
    updates.sketch(given)
    assert torch.equal(given["a"], before)
