"""The server of a federation, over silos without processes: numbers, losses, refusals."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from silos import FakeGrid, FakeSilo, local, serve, start_model

from dept.checkpoint.shared_embedding import SharedEmbedding, read_all
from dept.method.schedule import RoundSchedule
from dept.training.federation.server_files import ServerFiles
from dept.transport.flower.messages import Parcel

SOURCES = ("ant", "bee", "cat", "dog", "eel")


def three():
    return [FakeSilo("x", SOURCES[:2]), FakeSilo("y", SOURCES[2:4]), FakeSilo("z", SOURCES[4:])]


def nesterov(start, mean, momentum, lr=0.5, mu=0.5):
    """One step of Nesterov's method as torch has it, in plain numpy; returns value and momentum."""
    gradient = start - mean
    momentum = gradient if momentum is None else (mu * momentum + gradient).astype(np.float32)
    step = (gradient + np.float32(mu) * momentum).astype(np.float32)
    return (start - np.float32(lr) * step).astype(np.float32), momentum


def expected(rounds, drawn_of, lost=()):
    """The global model after some rounds; ``lost`` has (round, source) that no round averages."""
    model, momenta = start_model(), {}
    for index in range(rounds):
        kept = [s for s in drawn_of(index) if (index, s) not in lost]
        for name, value in model.items():
            locals_ = [local(s, index, value).astype(np.float64) for s in kept]
            mean = (sum(locals_) / len(locals_)).astype(np.float32)
            model[name], momenta[name] = nesterov(value, mean, momenta.get(name))
    return model


def assert_model(server, model):
    assert server.state.theta.keys() == model.keys()
    for name, value in model.items():
        np.testing.assert_allclose(server.state.theta[name].numpy(), value, rtol=1e-6, atol=1e-6)


def same(one, other):
    assert one.state.theta.keys() == other.state.theta.keys()
    return all(torch.equal(v, other.state.theta[n]) for n, v in one.state.theta.items())


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


def same_state(one, other):
    for name, state in one.outer_optimizer.state.items():
        for key, value in state.items():
            assert torch.equal(value, other.outer_optimizer.state[name][key])
    return one.state.averaged == other.state.averaged


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


# --- sources that join and leave ------------------------------------------------------------------

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


# --- embeddings that silos share ------------------------------------------------------------------


def sharing(silo, sources, at_round):
    """A silo that sends embeddings of ``sources`` after ``at_round`` rounds."""
    values = {"wte": torch.arange(6.0).view(3, 2)}
    shared = SharedEmbedding.of(["c", "a", "b"], values, ["wte"])

    def change(parcel):
        if parcel.fields["round"] != at_round:
            return parcel
        fields = {name: parcel.fields[name] for name in ("round", "nonce", "silo")}
        arrays = {n: a for source in sources for n, a in shared.arrays(source).items()}
        return Parcel("embeddings", fields | {"sources": sources}, {"bee/loss": 2.0}, arrays)

    silo.change = change
    return silo


def test_embeddings_that_a_silo_shares_are_written_for_others(tmp_path):
    silos = three()
    sharing(silos[0], ["bee"], 2)
    server, _, said = serve(silos, tmp_path, rounds=2, variant="spec")
    found = read_all(tmp_path)
    assert list(found) == ["bee"] and found["bee"].tokens == ("a", "b", "c")
    assert found["bee"].values["wte"].tolist() == [[2, 3], [4, 5], [0, 1]]
    assert server.state.latest["bee"]["loss"] == 2.0
    assert any("silo x shares the embedding of bee" in line for line in said)
    assert_model(server, expected(2, lambda index: SOURCES))


@pytest.mark.parametrize(
    ("sources", "at_round", "variant", "why"),
    [
        (["bee"], 1, "spec", "a late reply of silo x is dropped"),
        (["eel"], 2, "spec", "it shares embeddings of sources that are not its own"),
        (["bee"], 2, "glob", "glob has no private embeddings"),
    ],
)
def test_embeddings_at_another_time_or_of_others_are_refused(
    tmp_path, sources, at_round, variant, why
):
    silos = three()
    sharing(silos[0], sources, at_round)
    _, _, said = serve(silos, tmp_path, rounds=2, variant=variant)
    assert any(why in line for line in said) and not (tmp_path / "embeddings").exists()


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
