"""The server of a federation, over silos without processes: numbers, losses, refusals."""

import json

import numpy as np
import pytest
from expected_model import SOURCES, assert_model, expected, same, same_state, three
from silos import FakeGrid, FakeSilo, local, serve, start_model

from dept.method.schedule import RoundSchedule
from dept.training.federation.server_files import ServerFiles
from dept.transport.flower.messages import Parcel


def test_the_outer_step_is_that_of_one_job(tmp_path):
    server, grid, _said = serve(three(), tmp_path)
    assert_model(server, expected(3, lambda index: SOURCES))
    assert [line["averaged"] for line in server.state.history[:3]] == [list(SOURCES)] * 3
    assert server.state.averaged == dict.fromkeys(SOURCES, 2)
    last = grid.silos[1].rounds[-1]
    assert last.fields["round"] == 3 and last.fields["drawn"] == []
    assert last.fields["averaged"] == ["ant 2", "bee 2"]
    for name, value in server.state.theta.items():
        assert np.array_equal(last.arrays[name], value.numpy())


def test_one_silo_sends_the_model_as_built(tmp_path):
    """However long it takes; a second one would send as much for nothing."""
    silos = three()
    silos[0].fails = lambda p: "silent" if p.kind == "start" else None

    def every(grid, now):
        if now == 20:
            silos[0].fails = lambda p: None
            grid.release()

    server, _, _ = serve(silos, tmp_path, every=every)
    asked = [p.kind for silo in silos for p in silo.messages]
    assert asked.count("start") == 2  # kept back, and released
    assert "start" not in [p.kind for silo in silos[1:] for p in silo.messages]
    each = sum(value.nbytes for value in start_model().values())
    line = server.state.history[0]
    assert (line["bytes_down"], line["bytes_up"]) == (3 * each, len(SOURCES) * each)


def test_the_draw_is_that_of_one_job(tmp_path):
    server, _, _ = serve(three(), tmp_path, sources_per_round=2, rounds=5)
    drawn = RoundSchedule(SOURCES, 2, 3, seed=17).drawn
    assert [tuple(line["drawn"]) for line in server.state.history[:5]] == [
        drawn(t) for t in range(5)
    ]
    assert_model(server, expected(5, drawn))


def test_rows_are_averaged_over_their_holders(tmp_path):
    rows = {"ant": [0, 1, 2], "bee": [1, 2], "cat": [2, 3]}
    rows = {s: np.array(ids, np.int32) for s, ids in rows.items()}
    silos = [
        FakeSilo("x", ("ant", "bee"), {s: rows[s] for s in ("ant", "bee")}, ["wte"]),
        FakeSilo("y", ("cat",), {"cat": rows["cat"]}, ["wte"]),
    ]
    outer = {"name": "fedavg"}
    server, _, _ = serve(silos, tmp_path, rounds=1, variant="trim", outer=outer)
    start = start_model()["wte"]
    for row in range(5):
        holders = [s for s, ids in rows.items() if row in ids]
        values = [local(s, 0, start)[row].astype(np.float64) for s in holders]
        mean = sum(values) / len(values) if values else start[row]
        np.testing.assert_allclose(server.state.theta["wte"][row].numpy(), mean, rtol=1e-6)
    up = server.state.history[0]["bytes_up"]
    assert up == 4 * (3 * 3 * 2 + 7 * 2)  # three bodies, and seven rows


def test_a_silo_that_is_gone_is_missed_and_comes_back_for_the_next_round(tmp_path):
    silos = three()

    def every(grid, now):
        done = silos[0].rounds[-1].fields["round"] if silos[0].rounds else 0
        if done == 1:
            grid.online.discard(3)
        if done == 2:
            grid.online.add(3)

    silos[2].fails = lambda p: "silent" if p.fields.get("round") == 1 else None
    server, _grid, said = serve(silos, tmp_path, every=every, rounds=5)
    first = [line["missing"] for line in server.state.history[:5]]
    assert first[0] == [] and first[1] == ["eel"] and first[-1] == []
    assert "silo z has lost its connection" in said and "silo z is connected again" in said
    assert any("silos, without eel," in line for line in said)
    trained = [p.fields["round"] for p in silos[2].rounds if p.fields["drawn"]]
    assert 0 in trained and 4 in trained and 1 not in trained
    absent = {
        (line["round"] - 1, "eel")
        for line in server.state.history[:5]
        if "eel" not in line["averaged"]
    }
    assert_model(server, expected(5, lambda index: SOURCES, lost=absent))
    back = next(p for p in silos[2].rounds if p.fields["round"] > 1)
    assert back.fields["averaged"] == ["eel 0"]


def test_a_trainer_that_does_not_answer_is_asked_again_within_the_round(tmp_path):
    silos, tries = three(), []

    def fails(parcel):
        if parcel.kind == "round" and parcel.fields["round"] == 1:
            tries.append(parcel.fields["nonce"])
            return "no trainer of this silo answers" if len(tries) < 4 else None
        return None

    silos[1].fails = fails
    server, _, said = serve(silos, tmp_path)
    assert_model(server, expected(3, lambda index: SOURCES))
    assert len(tries) == 4 and len(set(tries)) == 1
    assert any("silo y does not answer: no trainer" in line for line in said)
    assert "silo y answers again" in said


def test_a_late_reply_is_dropped(tmp_path):
    silos = three()
    silos[2].fails = lambda p: (
        "silent" if p.fields.get("round") == 1 and p.kind == "round" else None
    )

    def every(grid, now):
        if len(silos[0].rounds) > 2 and grid.held:
            silos[2].fails = lambda p: None
            grid.release()

    server, _, said = serve(silos, tmp_path, every=every, rounds=4)
    assert server.state.history[1]["missing"] == ["eel"]
    assert "a late reply of silo z is dropped" in said
    lost = {
        (line["round"] - 1, "eel")
        for line in server.state.history[:4]
        if "eel" not in line["averaged"]
    }
    assert_model(server, expected(4, lambda index: SOURCES, lost=lost))


def test_a_second_reply_and_one_with_another_nonce_are_dropped(tmp_path):
    silos = three()
    silos[1].change = lambda p: Parcel(p.kind, p.fields | {"nonce": "0"}, p.metrics, p.arrays)
    with pytest.raises(TimeoutError, match="a late reply of silo y is dropped"):
        serve(silos, tmp_path, federation={"min_sources": 5}, limit=900)
    state = ServerFiles(tmp_path).load()
    assert state.round == 0


def test_a_round_waits_for_min_sources_and_says_so(tmp_path):
    silos, late = three(), []

    def every(grid, now):
        if now > 2000 and not late:
            late.append(now)
            silos[2].fails = silos[1].fails = lambda p: None
            grid.release()

    silos[1].fails = silos[2].fails = lambda p: "silent" if p.kind == "round" else None
    server, _, said = serve(silos, tmp_path, every=every, federation={"min_sources": 3})
    assert any("has updates of 2 sources, and min_sources is 3" in line for line in said)
    assert late and server.state.history[0]["missing"] == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a | {"cat/odd": a["cat/body"]}, "unknown array cat/odd"),
        (lambda a: {k: v for k, v in a.items() if k != "cat/body"}, "lacks array cat/body"),
        (lambda a: a | {"cat/body": a["cat/body"].reshape(2, 3)}, "has shape (2, 3)"),
        (lambda a: a | {"cat/body": a["cat/body"] * np.float32("nan")}, "a NaN or an infinity"),
        (lambda a: a | {"cat/body": np.zeros((3, 2), np.uint8)}, "its arrays are not float32"),
    ],
)
def test_an_update_that_is_not_as_it_should_be_is_not_averaged(tmp_path, change, why):
    silos = three()
    silos[1].change = lambda p: (
        Parcel(p.kind, p.fields, p.metrics, change(p.arrays)) if p.arrays else p
    )
    server, _, said = serve(silos, tmp_path, rounds=2)
    assert any("the update of silo y is not averaged" in line and why in line for line in said)
    lost = {(index, s) for index in range(2) for s in ("cat", "dog")}
    assert_model(server, expected(2, lambda index: SOURCES, lost=lost))


def test_a_source_that_a_silo_leaves_out_is_not_missing(tmp_path):
    silos = three()

    def change(p):
        if p.fields["round"] != 0 or not p.arrays:
            return p
        arrays = {k: v for k, v in p.arrays.items() if not k.startswith("cat")}
        fields = {"sources": ["dog"], "left_out": ["cat its loss was nan"]}
        return Parcel(p.kind, p.fields | fields, p.metrics, arrays)

    silos[1].change = change
    server, _, _said = serve(silos, tmp_path, rounds=2)
    assert server.state.history[0]["left_out"] == {"cat": "its loss was nan"}
    assert server.state.history[0]["missing"] == []
    assert_model(server, expected(2, lambda index: SOURCES, lost={(0, "cat")}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"refusal": "seed is 18 in the yaml of the silo"}, "seed is 18"),
        ({"protocol": 0}, "its messages have version 0"),
        ({"tokenizer": "other"}, "its global tokenizer differs"),
        ({"theta": "other"}, "its global model differs"),
        ({"parameters": ["body 3x2"]}, "have other names or shapes"),
        ({"sources": ["fly"]}, "are not of this federation"),
        ({"sources": ["ant"]}, "source ant is also one of silo x"),
        ({"silo": "x"}, "another node is connected as x"),
    ],
)
def test_a_silo_that_does_not_fit_is_refused(tmp_path, changes, why):
    silos = three()
    silos[2].joined = changes
    server, _, said = serve(silos, tmp_path, rounds=1)
    assert any("does not take part" in line and why in line for line in said), said
    assert silos[2].rounds == []
    assert server.state.history[0]["averaged"] == list(SOURCES[:4])


def test_a_server_that_is_killed_resumes_to_the_same_numbers(tmp_path):
    seconds = []
    options = {"sources_per_round": 3, "rounds": 4}
    whole, _, _ = serve(
        three(), tmp_path / "whole", every=lambda grid, now: seconds.append(int(now)), **options
    )

    class Killed(BaseException):
        pass

    assert len(seconds) > 5
    for second in seconds:
        folder, silos = tmp_path / str(second), three()

        def every(grid, now, second=second):
            if now == second:
                raise Killed

        with pytest.raises(Killed):
            serve(silos, folder, every=every, **options)
        files = ServerFiles(folder)
        state = files.load()
        plan = state and files.plan(state.round)
        server, _, _ = serve(silos, folder, **options)
        if plan is not None:  # the same draw, asked under the same nonce
            fields = [p.fields for p in silos[0].rounds if p.fields["round"] == plan.round_index]
            assert {f["nonce"] for f in fields} == {plan.nonce}
        assert same(server, whole)
        assert same_state(server, whole)


def test_nothing_is_sent_before_it_is_saved(tmp_path):
    """A silo is never ahead of what a killed server has on its disk."""
    silos = three()

    def fails(parcel):
        if parcel.kind == "round":
            state = ServerFiles(tmp_path).load()
            assert state.round == parcel.fields["round"]
            for name, value in state.theta.items():
                assert np.array_equal(parcel.arrays[name], value.numpy())
            plan = json.loads((tmp_path / "plan.json").read_text())
            assert plan["nonce"] == parcel.fields["nonce"]
        return None

    for silo in silos:
        silo.fails = fails
    serve(silos, tmp_path)


def test_the_rounds_of_a_silo_that_is_stopped_do_not_each_wait_for_it(tmp_path):
    silos, grid = three(), None
    silos[2].fails = lambda p: "silent" if p.kind == "round" else None
    grid = FakeGrid(silos)
    server, _, _ = serve(silos, tmp_path, grid=grid, rounds=4, limit=700 + 60)
    assert server.state.history[0]["missing"] == ["eel"]
    assert [line["drawn"] for line in server.state.history[1:4]] == [list(SOURCES[:4])] * 3
