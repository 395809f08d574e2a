"""Workers in processes of their own: what they send, the mean they come to, and how one dies."""

import itertools
import os
import signal
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from forks import forks

from dept.costs.transport import coded_step_bytes, every_step_bytes, outer_step_bytes
from dept.errors import WorkerLost
from dept.method.aggregation import Aggregation
from dept.method.averaging import Share
from dept.method.compression import LOSSLESS, Compression
from dept.transport.exchange import ExactReduction
from dept.transport.process_group import join
from dept.transport.reductions import Reductions
from dept.transport.topology import Place
from dept.transport.workers import Workers

V, WIDTH, SOURCES = 50, 4, 4
SHAPES = {"theta": (7, 5), "bias": (3,), "phi": (V, WIDTH)}


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_workers(function, count):
    """Runs ``function(workers)`` in ``count`` processes; what each returned."""
    with ProcessPoolExecutor(count, mp_context=forks()) as pool:
        at = port()
        return list(pool.map(_in_worker, [(function, w, count, at) for w in range(count)]))


def _in_worker(given):
    function, worker, count, at = given
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(at))
    place = Place(worker=worker, workers=count, local_rank=worker, local_world=count)
    return function(join(place, timeout=600))


def local_models(by_row):
    """A start, and for each source its local model and its share."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    start = {name: draw(*shape) for name, shape in SHAPES.items()}
    given = []
    for source in range(SOURCES):
        rows = torch.randperm(V, generator=generator)[: 10 + 5 * source].sort().values
        phi = draw(len(rows), WIDTH) if by_row else draw(V, WIDTH)
        local = {"theta": draw(7, 5), "bias": draw(3), "phi": phi}
        given.append((local, Share(1.0 + source, {"phi": rows} if by_row else {})))
    return start, given


def shares_of(given, workers):
    """Of each worker, by source: neighbours belong together."""
    each = SOURCES // workers
    shares = [(str(source), share) for source, (_, share) in enumerate(given)]
    return [dict(shares[w * each :][:each]) for w in range(workers)]


CASES = [(by_row, bucket) for by_row in (False, True) for bucket in (1 << 24, 16)]


def reduce(workers):
    """Averages of every case: by row or not, in one bucket or in many; and the bytes sent."""
    results = {}
    for by_row, bucket in CASES:
        start, given = local_models(by_row)
        reduction = ExactReduction(start, bucket)
        shares = shares_of(given, workers.count)
        for source, share in shares[workers.place.worker].items():
            reduction.add(source, given[int(source)][0], share)
        workers.sent.clear()
        averages = reduction.averages(workers, shares)
        values = {name: average.value.numpy() for name, average in averages.items()}
        results[by_row, bucket] = values, workers.sent["model"]
    here = {"worker": workers.place.worker, "odd": ["x"] * workers.place.worker}
    return results, workers.gather(here, stage="here")


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_workers_comes_to_the_same_bits_for_the_stated_cost(count):
    alone, _ = reduce(Workers(Place()))
    everyone = in_workers(reduce, count)
    each = SOURCES // count
    for by_row, bucket in CASES:
        expected, sent = alone[by_row, bucket]
        assert sent == 0
        for results, _ in everyone:
            values, _ = results[by_row, bucket]
            assert all(np.array_equal(values[name], expected[name]) for name in SHAPES)
        _, given = local_models(by_row)
        held = [
            np.unique(np.concatenate([share.rows["phi"] for _, share in given[w * each :][:each]]))
            if by_row
            else np.arange(V)
            for w in range(count)
        ]
        averaged = {name: SHAPES[name] for name in SHAPES if name != "phi" or not by_row}
        rows = {"phi": SHAPES["phi"]} if by_row else {}
        cost = outer_step_bytes(averaged, rows, held, slots_per_worker=each)
        assert sum(results[by_row, bucket][1] for results, _ in everyone) == cost
    figures = [{"worker": w, "odd": ["x"] * w} for w in range(count)]
    assert all(gathered == figures for _, gathered in everyone)


CODED = [
    {"name": "bf16"},
    {"name": "int8", "block": 32},
    {"name": "int4", "block": 16, "error_feedback": False},
    {"name": "topk", "density": 0.1, "block": 64},
]


def reduce_coded(workers):
    """Averages of three rounds of each codec, by row and not, as numpy; and the bytes sent."""
    results = []
    for options, by_row in itertools.product(CODED, (False, True)):
        start, given = local_models(by_row)
        shares = shares_of(given, workers.count)
        reductions = Reductions(Compression.of(options))
        workers.sent.clear()
        for _ in range(3):
            reduction = reductions.open(start, [str(source) for source in range(SOURCES)])
            for source, share in shares[workers.place.worker].items():
                reduction.add(source, given[int(source)][0], share)
            averages = reduction.averages(workers, shares, stage="here")
            reductions.close(reduction)
            results.append({name: average.value.numpy() for name, average in averages.items()})
        results.append(workers.sent["model"])
    return results


@pytest.mark.parametrize("count", [2, 4])
def test_coded_updates_give_the_same_bits_for_any_number_of_workers_at_the_stated_cost(count):
    alone = reduce_coded(Workers(Place()))
    everyone = in_workers(reduce_coded, count)
    for index, expected in enumerate(alone):
        for results in everyone:
            if isinstance(expected, dict):
                assert all(np.array_equal(results[index][n], expected[n]) for n in SHAPES)
    sent = [sum(results[i] for results in everyone) for i in range(3, len(alone), 4)]
    for (options, by_row), counted in zip(
        itertools.product(CODED, (False, True)), sent, strict=True
    ):
        start, given = local_models(by_row)
        cost = coded_step_bytes(Compression.of(options), start, shares_of(given, count))
        assert counted == 3 * cost, (options, by_row)


GATHERED = [
    ({"name": "mean"}, 0.5, None, False),
    ({"name": "mean"}, 0.5, {"noise_multiplier": 1.0}, False),
    ({"name": "median"}, None, None, True),
    ({"name": "trimmed_mean"}, None, None, False),
    ({"name": "krum"}, 2.0, None, True),
    ({"name": "multi_krum", "selected": 2}, None, None, True),
]


def reduce_gathered(workers):
    """Averages of each rule, uncompressed and as int8 for two rounds; and the bytes sent."""
    results = []
    for average, clip, privacy, by_row in GATHERED:
        aggregation = Aggregation.of(average, clip, privacy)
        start, given = local_models(by_row)
        given = [(local, Share(1.0, share.rows)) for local, share in given]
        shares = shares_of(given, workers.count)
        for compression in (None, Compression.of({"name": "int8", "block": 32})):
            reductions = Reductions(compression, aggregation)
            workers.sent.clear()
            for round_index in range(2):
                drawn = [str(source) for source in range(SOURCES)]
                reduction = reductions.open(start, drawn, noise_seed=round_index)
                for source, share in shares[workers.place.worker].items():
                    reduction.add(source, given[int(source)][0], share)
                averages = reduction.averages(workers, shares, stage="here")
                reductions.close(reduction)
                found = {name: average.value.numpy() for name, average in averages.items()}
                held = averages["phi"].held
                results.append(found | ({} if held is None else {"held": held.numpy()}))
            results.append(workers.sent["model"])
    return results


@pytest.mark.parametrize("count", [2, 4])
def test_every_rule_gives_the_same_bits_for_any_number_of_workers_at_the_stated_cost(count):
    alone = reduce_gathered(Workers(Place()))
    everyone = in_workers(reduce_gathered, count)
    for index, expected in enumerate(alone):
        for results in everyone:
            if isinstance(expected, dict):
                assert results[index].keys() == expected.keys()
                assert all(np.array_equal(results[index][n], expected[n]) for n in expected)
    sent = [sum(results[i] for results in everyone) for i in range(2, len(alone), 3)]
    for index, (_, _, _, by_row) in enumerate(GATHERED):
        start, given = local_models(by_row)
        shares = shares_of(given, count)
        plain, coded = sent[2 * index : 2 * index + 2]
        assert plain == 2 * coded_step_bytes(LOSSLESS, start, shares)
        int8 = Compression.of({"name": "int8", "block": 32})
        assert coded == 2 * coded_step_bytes(int8, start, shares)


def test_gathered_bytes_by_hand():
    """Two workers of one source: 38 numbers, rows 0 1 2 and 2 3 of width 4, and a checksum."""
    start = {"w": torch.empty(38), "phi": torch.empty(9, 4)}
    rows = [torch.tensor([0, 1, 2]), torch.tensor([2, 3])]
    shares = [{str(i): Share(1.0, {"phi": ids})} for i, ids in enumerate(rows)]
    up, down = 4 * (38 + 2 * 4) + 4, 4 * (38 + 4 * 4) + 4
    assert coded_step_bytes(LOSSLESS, start, shares) == up + down


def test_rows_that_krum_left_out_keep_their_value_and_are_not_held():
    start, given = local_models(by_row=True)
    far = {name: value + 1000 for name, value in given[3][0].items()}
    given = [(local, Share(1.0, share.rows)) for local, share in [*given[:3], (far, given[3][1])]]
    for compression in (None, Compression.of({"name": "topk", "density": 0.1, "block": 64})):
        reductions = Reductions(compression, Aggregation.of({"name": "multi_krum"}, None, None))
        for _ in range(3):  # errors of rows that wait are not sent with those of others
            reduction = reductions.open(start, list("0123"))
            for source, (local, share) in enumerate(given):
                reduction.add(str(source), local, share)
            shares = [{str(source): share for source, (_, share) in enumerate(given)}]
            phi = reduction.averages(Workers(Place()), shares, stage="here")["phi"]
            reductions.close(reduction)
            kept = np.unique(np.concatenate([share.rows["phi"] for _, share in given[:3]]))
            assert np.array_equal(phi.held.nonzero().flatten().numpy(), kept)
            assert torch.equal(phi.value[~phi.held], start["phi"][~phi.held])


def test_a_worker_asks_for_all_its_pieces_before_it_sends_any():
    """gloo sends a request behind the numbers that are on their way, so it has to be first."""
    group, calls = Mock(), []
    group.recv.side_effect = lambda tensors, worker, tag: calls.append(("ask", worker)) or Mock()
    group.send.side_effect = lambda tensors, worker, tag: calls.append(("send", worker)) or Mock()
    workers = Workers(Place(worker=1, workers=4), Mock(), group, group)
    pieces = [torch.ones(n) for n in (5, 3, 0, 2)]
    received = workers.all_to_all(pieces, [7, 3, 1, 0], kind="model", stage="here")
    assert calls == [("ask", 0), ("ask", 2), ("send", 0), ("send", 3)]
    assert [len(piece) for piece in received] == [7, 3, 1, 0] and received[1] is pieces[1]
    assert workers.sent["model"] == 4 * (5 + 2)


def test_costs_by_hand():
    # Two workers, ten numbers: each sends five and gets five back, once as sums, once as means.
    assert outer_step_bytes({"w": (10,)}, {}, [np.arange(0)] * 2, slots_per_worker=1) == 2 * 40
    assert outer_step_bytes({"w": (10,)}, {}, [np.arange(0)] * 2, slots_per_worker=2) == 2 * 60
    # Rows 0 1 2 of one, 2 3 of the other: the first averages 0 1, the second 2 3.
    held = [np.array([0, 1, 2]), np.array([2, 3])]
    rows = outer_step_bytes({}, {"phi": (9, 5)}, held, slots_per_worker=1)
    assert rows == 4 * 5 * (1 + 0) + 4 * 5 * 4
    assert every_step_bytes(10, workers=4, steps=3) == 2 * 3 * 40 * 3


def share_start(workers):
    tensors = [torch.full((3,), float(workers.place.worker + 5)), torch.arange(2)]
    workers.from_first(tensors, kind="start", stage="the start")
    value = workers.value_of_first({"round": workers.place.worker + 3}, stage="the start")
    return [t.tolist() for t in tensors], value, dict(workers.sent)


def test_all_start_where_the_first_one_does():
    results = in_workers(share_start, 3)
    assert all(r[0] == [[5.0] * 3, [0, 1]] and r[1] == {"round": 3} for r in results)
    assert [r[2].get("start", 0) for r in results] == [2 * (12 + 16), 0, 0]


def at_the_end_of_a_round(workers):
    """Whether all come to the end of a round; then of one that the second is asked to stop in."""
    stage = "the outer step"
    first = workers.all_arrive("round 0", lambda: False, stage=stage)
    if workers.place.worker == 0:
        time.sleep(0.3)
    return first, workers.all_arrive("round 1", lambda: workers.place.worker == 1, stage=stage)


def test_workers_finish_a_round_that_all_come_to_and_stop_together_else():
    assert in_workers(at_the_end_of_a_round, 2) == [(True, False)] * 2


def stop_while_another_waits(workers):
    if workers.place.worker == 1:
        time.sleep(0.2)
        workers.stop_before("round 0")
        return None
    return workers.all_arrive("round 0", lambda: False, stage="the outer step of round 1")


def test_a_worker_that_waits_stops_with_another_one():
    assert in_workers(stop_while_another_waits, 2) == [False, None]


def gather(workers, stage):
    workers.gather(1, stage=stage)


def arrive(workers, stage):
    """It returns first, since what this worker has done is saved before it ends."""
    assert not workers.all_arrive("round 6", lambda: False, stage=stage)
    raise workers.loss


def die(wait, workers):
    workers.wait_for_all("the start")
    if workers.place.worker == 1:
        time.sleep(0.5)
        return "left"
    try:
        wait(workers, "the outer step of round 7")
    except WorkerLost as error:
        return str(error)


@pytest.mark.parametrize("wait", [gather, arrive])
def test_a_lost_worker_is_named(wait):
    context = forks()
    answers, over, at = context.Queue(), context.Event(), port()
    jobs = [(w, at, answers, over, wait) for w in range(3)]
    processes = [context.Process(target=_report, args=job) for job in jobs]
    for process in processes:
        process.start()
    messages = [answers.get(timeout=600) for _ in range(2)]
    over.set()
    for process in processes:
        process.join()
    expected = "worker 1 did not come to the outer step of round 7 and is gone"
    assert all(message.startswith(expected) for message in messages), messages


def _report(worker, at, answers, over, wait):
    message = _in_worker((partial(die, wait), worker, 3, at))
    if worker == 1:
        os._exit(9)
    answers.put(message)
    over.wait()  # the store that says who is missing lives in the first worker


def _waits_for_nobody(at, began):
    signal.signal(signal.SIGTERM, lambda *_: None)  # as libraries do
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(at))
    began.set()
    join(Place(worker=1, workers=2, local_rank=1, local_world=2), timeout=20)


def test_a_worker_that_waits_for_a_dead_one_can_be_ended():
    context = forks()
    began = context.Event()
    process = context.Process(target=_waits_for_nobody, args=(port(), began))
    process.start()
    began.wait()
    while process.exitcode is None:
        process.terminate()
        process.join(0.1)
    assert process.exitcode == -signal.SIGTERM
