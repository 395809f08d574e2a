"""The mean of coded updates over three rounds, against the same written out with numpy."""

import numpy as np
import pytest
import torch

from dept.method.averaging import Share
from dept.method.compression import Compression
from dept.transport.reductions import Reductions

HOLDERS = {"it": [0, 2, 3], "en": [0, 3], "zh": [3, 5]}
WEIGHTS = {"it": 1.0, "en": 2.0, "zh": 5.0}
ROWS, WIDTH, BLOCK = 7, 5, 8


def int8(blocks):
    """The nearest multiples of a step for each block, and the step is a 127th of the largest."""
    steps = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    whole = np.rint(np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0))
    return (np.clip(whole, -127, 127) * steps).astype(np.float32)


def in_blocks(update):
    """Body and biases by name, as one padded sequence."""
    flat = np.concatenate([update[name].ravel() for name in ("body", "norm")])
    return np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)


def from_blocks(blocks):
    flat = blocks.ravel()
    return {"body": flat[:12].reshape(3, 4), "norm": flat[12:15]}


def local_models(round_index):
    generator = np.random.default_rng(round_index)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    start = {"norm": draw(3), "phi": draw(ROWS, WIDTH), "body": draw(3, 4)}
    local = {
        source: {"phi": draw(len(rows), WIDTH), "body": draw(3, 4), "norm": draw(3)}
        for source, rows in HOLDERS.items()
    }
    return start, local


def by_hand(rounds, decay):
    """The averages of each round: code, decode, sum, code the mean, and keep what is left."""
    results = []
    error = {s: (np.zeros((2, BLOCK)), np.zeros((len(r), WIDTH))) for s, r in HOLDERS.items()}
    back, back_rows = np.zeros((2, BLOCK)), np.zeros((ROWS, WIDTH))
    for start, local in rounds:
        whole, rows, held = np.zeros((2, BLOCK)), np.zeros((ROWS, WIDTH)), np.zeros(ROWS)
        for source, ids in HOLDERS.items():
            update = {n: start[n] - local[source][n] for n in ("body", "norm")}
            sent = in_blocks(update) + np.float32(decay) * error[source][0].astype(np.float32)
            sent_rows = start["phi"][ids] - local[source]["phi"]
            sent_rows = sent_rows + np.float32(decay) * error[source][1].astype(np.float32)
            got, got_rows = int8(sent), int8(sent_rows)
            error[source] = (sent - got, sent_rows - got_rows)
            whole += WEIGHTS[source] * got
            rows[ids] += WEIGHTS[source] * got_rows
            held[ids] += WEIGHTS[source]
        some = held > 0
        mean = (whole / sum(WEIGHTS.values()) + decay * back).astype(np.float32)
        mean_rows = (rows[some] / held[some, None] + decay * back_rows[some]).astype(np.float32)
        got, got_rows = int8(mean), int8(mean_rows)
        back, back_rows[some] = mean - got, mean_rows - got_rows
        phi = start["phi"].copy()
        phi[some] -= got_rows
        averages = {n: start[n] - value for n, value in from_blocks(got).items()} | {"phi": phi}
        results.append((averages, some))
    return results


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_three_rounds_of_int8_with_rows_and_errors_both_ways(decay):
    feedback = {"decay": decay} if decay else {"error_feedback": False}
    compression = Compression.of({"name": "int8", "block": BLOCK, **feedback})
    reductions = Reductions(compression)
    rounds = [local_models(index) for index in range(3)]
    for (start, local), (expected, held) in zip(rounds, by_hand(rounds, decay), strict=True):
        reduction = reductions.open(
            {n: torch.from_numpy(v) for n, v in start.items()}, list(HOLDERS)
        )
        shares = {}
        for source, ids in HOLDERS.items():
            shares[source] = Share(WEIGHTS[source], {"phi": torch.tensor(ids)})
            model = {n: torch.from_numpy(v) for n, v in local[source].items()}
            reduction.add(source, model, shares[source])
        averages = reduction.averages(shares=[shares])
        reductions.close(reduction)
        for name, value in expected.items():
            torch.testing.assert_close(averages[name].value, torch.from_numpy(value))
        assert averages["phi"].held.tolist() == held.tolist()
        assert averages["body"].held is None


def test_without_errors_the_mean_differs():
    """The oracle can tell error feedback from none."""
    rounds = [local_models(index) for index in range(3)]
    kept, dropped = by_hand(rounds, 1.0), by_hand(rounds, 0.0)
    for name in ("body", "phi"):
        assert np.array_equal(kept[0][0][name], dropped[0][0][name])
        assert np.abs(kept[2][0][name] - dropped[2][0][name]).max() > 1e-3
