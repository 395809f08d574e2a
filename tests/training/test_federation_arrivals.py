"""Sources that join and leave a federation: draws, numbers and refusals, over fake silos."""

import numpy as np
import pytest
import torch
from expected_model import SOURCES, assert_model, expected, same, same_state, three
from flwr.app import Error, Message
from silos import FakeGrid, FakeSilo, serve

from dept.method.schedule import RoundSchedule
from dept.training.federation.server_files import ServerFiles

OPEN = {"allow_source_changes": True}


def arriving(silos, node, at_round):
    """A grid whose silo ``node`` connects once round ``at_round`` (from 0) is asked."""
    grid = FakeGrid(silos)
    grid.online.discard(node)

    def every(grid, now):
        if any(p.fields["round"] >= at_round for silo in silos for p in silo.rounds):
            grid.online.add(node)

    return grid, every


def joined_at_two(folder, *, silos=None, every=None, **options):
    """Five rounds; ``eel`` and ``fly``, of which the yaml knows nothing, arrive in the second."""
    silos = silos or [*three()[:2], FakeSilo("z", ("fly", "eel"))]
    grid, arrive = arriving(silos, 3, 1)

    def both(grid, now):
        arrive(grid, now)
        if every is not None:
            every(grid, now)

    options = {
        "sources_per_round": 2,
        "rounds": 5,
        "federation": {"sources": SOURCES[:4]},
    } | options
    return serve(silos, folder, grid=grid, every=both, **OPEN, **options)


def test_a_source_that_joins_is_in_the_draw_of_the_next_round(tmp_path):
    """The draws are those of a job that resumes with these sources."""
    server, grid, said = joined_at_two(tmp_path)
    before = RoundSchedule(SOURCES[:4], 2, 3, seed=17)
    after = RoundSchedule((*SOURCES[:4], "eel", "fly"), 2, 3, seed=17)
    assert {*after.drawn(2), *after.drawn(3), *after.drawn(4)} & {"eel", "fly"}

    def drawn(index):
        return (before if index < 2 else after).drawn(index)

    assert [tuple(line["drawn"]) for line in server.state.history[:5]] == list(map(drawn, range(5)))
    assert all(line["missing"] == [] for line in server.state.history)
    assert_model(server, expected(5, drawn))
    assert [p.fields["outside"] for p in grid.silos[3].rounds] == [["fly", "eel"], *[[]] * 4]
    assert server.roster.changes == [
        {
            "round": 3,
            "sources": [*SOURCES[:4], "eel", "fly"],
            "sources_per_round": 2,
            "joined": ["eel", "fly"],
            "left": [],
        }
    ]
    assert any("from round 3 on, the sources are ant, bee, cat, dog, eel, fly" in s for s in said)


def test_a_server_that_is_killed_while_a_source_joins_resumes_to_the_same_numbers(tmp_path):
    seconds = []
    whole, _, _ = joined_at_two(tmp_path / "whole", every=lambda grid, now: seconds.append(now))

    class Killed(BaseException):
        pass

    assert len(seconds) > 5
    for second in seconds:
        folder, silos = tmp_path / str(second), [*three()[:2], FakeSilo("z", ("fly", "eel"))]

        def every(grid, now, second=second):
            if now == second:
                raise Killed

        with pytest.raises(Killed):
            joined_at_two(folder, silos=silos, every=every)
        server, _, _ = joined_at_two(folder, silos=silos)
        assert same(server, whole) and same_state(server, whole)
        assert server.roster.changes == whole.roster.changes


def test_without_the_option_a_silo_neither_brings_a_source_nor_takes_one_out(tmp_path):
    silos = three()
    silos[1].announcement.leaving = ["dog"]
    silos[2].announcement.sources = ["fly"]
    server, _, said = serve(silos, tmp_path, rounds=1, federation={"sources": SOURCES})
    for who, why in (("y", "it takes out dog"), ("z", "['fly'] are not of this federation")):
        assert any(f"silo {who} does not take part: " in s and why in s for s in said)
    assert server.state.history[0]["averaged"] == ["ant", "bee"]


def test_a_silo_cannot_take_out_the_source_of_another(tmp_path):
    silos = three()
    silos[2].announcement.leaving = ["ant"]
    server, _, said = serve(silos, tmp_path, rounds=1, **OPEN)
    assert any("it takes out sources that are not its own" in s for s in said)
    assert server.state.history[0]["averaged"] == list(SOURCES[:4])


def restarted(silos, node, at_round, change):
    """A look at the silos that kills the trainer of one in a round, and starts it otherwise."""
    silo, done = silos[node - 1], []
    silo.fails = lambda p: "silent" if p.fields.get("round") == at_round and not done else None

    def every(grid, now):
        if grid.held and not done:
            done.append(now)
            change(silo)
            message_id, (_, message) = grid.held.popitem()
            grid.ready[message_id] = Message(Error(0, "no trainer answers"), reply_to=message)

    return every


def test_a_source_that_leaves_ends_the_round_that_has_begun_and_is_not_drawn_again(tmp_path):
    silos = three()
    every = restarted(silos, 2, 1, lambda silo: silo.announcement.leaving.append("dog"))
    server, grid, said = serve(silos, tmp_path, rounds=4, every=every, **OPEN)
    left = [s for s in SOURCES if s != "dog"]
    drawn = [line["drawn"] for line in server.state.history[:4]]
    assert drawn == [list(SOURCES), list(SOURCES), left, left]
    assert all(line["missing"] == [] for line in server.state.history)
    assert_model(server, expected(4, lambda index: drawn[index]))
    assert [p.fields["outside"] for p in grid.silos[2].rounds][-2:] == [["dog"], ["dog"]]
    assert server.roster.changes[0]["left"] == ["dog"]
    assert "silo y has left the federation" not in said


def test_a_silo_all_of_whose_sources_leave_is_waited_for_no_longer(tmp_path):
    silos = three()
    every = restarted(silos, 3, 1, lambda silo: silo.announcement.leaving.append("eel"))
    server, grid, said = serve(silos, tmp_path, rounds=4, every=every, limit=120, **OPEN)
    assert [len(line["drawn"]) for line in server.state.history[:4]] == [5, 5, 4, 4]
    asked = [p.fields["round"] for p in grid.silos[3].rounds]
    assert asked == [0, 1, 2]  # the last one says that it has left
    assert grid.silos[3].rounds[-1].fields["outside"] == ["eel"]
    assert said.count("silo z has left the federation") == 1


def test_a_trainer_that_was_started_with_another_source_joins_again(tmp_path):
    silos = three()
    every = restarted(silos, 2, 1, lambda silo: silo.announcement.sources.append("fly"))
    server, _, _ = serve(silos, tmp_path, rounds=4, every=every, **OPEN)
    assert [line["drawn"] for line in server.state.history[:4]] == [
        list(SOURCES),
        list(SOURCES),
        [*SOURCES, "fly"],
        [*SOURCES, "fly"],
    ]
    assert all(line["missing"] == [] for line in server.state.history)


def test_a_source_that_left_comes_back_when_its_silo_brings_it_again(tmp_path):
    silos = three()
    leaves = restarted(silos, 2, 1, lambda silo: silo.announcement.leaving.append("dog"))
    again = []

    def every(grid, now):
        leaves(grid, now)
        if silos[1].rounds and silos[1].rounds[-1].fields["round"] == 2 and not again:
            again.append(now)
            silos[1].announcement.leaving.clear()
            grid.online.discard(2)
        elif again:
            grid.online.add(2)

    server, _, _ = serve(silos, tmp_path, rounds=6, every=every, **OPEN)
    assert "dog" not in server.state.history[2]["drawn"]
    assert [s for s in server.state.history[5]["drawn"]][-1] == "dog"
    assert [change["left"] for change in server.roster.changes] == [["dog"], []]
    assert server.roster.changes[1]["joined"] == ["dog"]


def test_rows_of_a_source_that_left_keep_their_value_and_their_outer_state(tmp_path):
    rows = {"ant": [0, 1, 2], "bee": [1, 2], "cat": [2, 3]}
    rows = {s: np.array(ids, np.int32) for s, ids in rows.items()}
    silos = [
        FakeSilo("x", ("ant", "bee"), {s: rows[s] for s in ("ant", "bee")}, ["wte"]),
        FakeSilo("y", ("cat",), {"cat": rows["cat"]}, ["wte"]),
    ]
    kept = []

    def leave(silo):
        silo.announcement.leaving.append("cat")

    restart = restarted(silos, 2, 1, leave)

    def every(grid, now):
        restart(grid, now)
        state = ServerFiles(tmp_path).load()
        if state is not None and state.round >= 2:
            momentum = state.outer_optimizer["state"]["wte"]["momentum_buffer"]
            kept.append((state.theta["wte"][3].clone(), momentum[3].clone(), state.round))

    server, _, _ = serve(silos, tmp_path, rounds=5, variant="trim", every=every, **OPEN)
    assert {index for _, _, index in kept} >= {2, 3, 4}
    momentum = server.outer_optimizer.state["wte"]["momentum_buffer"]
    for value, of_row, _ in [*kept, (server.state.theta["wte"][3], momentum[3], 5)]:
        assert torch.equal(value, kept[0][0]) and torch.equal(of_row, kept[0][1])
    assert not torch.equal(server.state.theta["wte"][2], kept[0][0])


def test_a_silo_that_comes_back_otherwise_within_a_round_keeps_its_update(tmp_path):
    """It has sent its update, and is there again without one of its sources before others have."""
    silos = three()
    silos[0].fails = lambda p: "silent" if p.fields.get("round") == 1 else None
    moments = []

    def every(grid, now):
        answered = silos[1].rounds and silos[1].rounds[-1].fields["round"] == 1
        moments.append(bool(answered) and bool(grid.held))
        if sum(moments) == 3:
            grid.online.discard(2)
            silos[1].announcement.sources = ["cat"]
        if sum(moments) == 6:
            grid.online.add(2)
        if sum(moments) == 12:
            silos[0].fails = lambda p: None
            grid.release()

    server, _, _ = serve(silos, tmp_path, rounds=3, every=every)
    drawn = [line["averaged"] for line in server.state.history[:3]]
    assert drawn[:2] == [list(SOURCES)] * 2 and "dog" not in drawn[2]
    assert_model(server, expected(3, lambda index: drawn[index]))
