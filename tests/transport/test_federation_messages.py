"""Messages of a federation: what they may have, and how they travel."""

import json
import socket
import struct
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from dept.errors import ConfigError
from dept.transport.flower import client_app, frames
from dept.transport.flower.link import Announcement, Link
from dept.transport.flower.messages import (
    KINDS,
    PROTOCOL,
    Parcel,
    Refused,
    check,
    check_arrays,
    shapes_of_fields,
    shapes_to_fields,
)
from dept.transport.flower.record import of_record, to_record
from dept.transport.flower.theta import hash_of

EXAMPLE = {str: "a text", int: 3, list: ["one", "two 2"]}


def example(kind):
    """A parcel with all that its kind may have."""
    may = KINDS[kind]
    arrays = {f"s/{name}": np.arange(6).reshape(2, 3).astype(name) for name in may.dtypes} | (
        {"scalar": np.float32(2).reshape(())} if "float32" in may.dtypes else {}
    )
    fields = {name: EXAMPLE[t] for name, t in may.fields.items()}
    return Parcel(kind, fields, {"en/loss": 1.5} if may.metrics else {}, arrays)


def assert_same(one, other):
    assert (one.kind, one.fields, one.metrics) == (other.kind, other.fields, other.metrics)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype and array.shape == other.arrays[name].shape
        assert array.tobytes() == other.arrays[name].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_parcel_survives_flower_and_the_socket(kind):
    parcel = example(kind)
    assert_same(of_record(to_record(parcel)), parcel)
    empty = Parcel(
        kind, parcel.fields | {n: [] for n, t in KINDS[kind].fields.items() if t is list}
    )
    assert_same(of_record(to_record(empty)), empty)
    here, there = socket.socketpair()
    with here, there:
        sender = threading.Thread(target=frames.send, args=(here, parcel))
        sender.start()
        assert_same(frames.receive(there, 1000), parcel)
        sender.join()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_may_travel(kind):
    parcel = example(kind)
    wrong = [
        Parcel("text", parcel.fields),
        Parcel(kind, parcel.fields | {"text": "a sentence"}),
        Parcel(kind, parcel.fields, {}, {"x": np.zeros(2, np.float64)}),
        Parcel(kind, parcel.fields, {}, {"x": np.zeros(2, np.int64)}),
        Parcel(kind, parcel.fields, {}, {"x": np.array(["text"])}),
        Parcel(kind, parcel.fields, {}, {"x": np.array([None], dtype=object)}),
    ]
    for name, kind_of in KINDS[kind].fields.items():
        wrong.append(Parcel(kind, {k: v for k, v in parcel.fields.items() if k != name}))
        wrong.append(Parcel(kind, parcel.fields | {name: {"a": 1}}))
        if kind_of is list:
            wrong.append(Parcel(kind, parcel.fields | {name: ["a", 1]}))
    if not KINDS[kind].metrics:
        wrong.append(Parcel(kind, parcel.fields, {"en/loss": 1.0}))
    if not KINDS[kind].dtypes:
        wrong.append(Parcel(kind, parcel.fields, {}, {"x": np.zeros(2, np.float32)}))
    for each in wrong:
        with pytest.raises(Refused):
            check(each)
        with pytest.raises(Refused):
            to_record(each)
        here, there = socket.socketpair()
        with here, there, pytest.raises(Refused):
            frames.send(here, each)


def test_a_pickle_is_not_read():
    hostile = Array("object", (1,), "numpy.ndarray", b"\x80\x04cos\nsystem\n")
    strange = Array("float32", (1,), "pickle", b"\0\0\0\0")
    short = Array("float32", (2,), "bytes", b"\0\0\0\0")
    for array in (hostile, strange, short):
        record = RecordDict(
            {
                "about": ConfigRecord({"kind": "started"}),
                "metrics": MetricRecord({}),
                "arrays": ArrayRecord({"x": array}),
            }
        )
        with pytest.raises(Refused):
            of_record(record)
    with pytest.raises(Refused):
        of_record(RecordDict({"arrays": ArrayRecord({})}))


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        json.dumps({"kind": "start", "fields": {}, "metrics": {}, "arrays": 3}).encode(),
        json.dumps(
            {"kind": "started", "fields": {}, "metrics": {}, "arrays": [["x", "object", [1]]]}
        ).encode(),
        json.dumps(
            {"kind": "started", "fields": {}, "metrics": {}, "arrays": [["x", "float32", [-1]]]}
        ).encode(),
        json.dumps(
            {"kind": "started", "fields": {}, "metrics": {}, "arrays": [["x", "float32", [1000]]]}
        ).encode(),
    ],
)
def test_a_frame_that_is_no_message_is_refused(header):
    here, there = socket.socketpair()
    with here, there:
        here.sendall(struct.pack(">Q", len(header)) + header)
        with pytest.raises(Refused):
            frames.receive(there, 1000)


def test_a_frame_with_a_huge_header_is_refused_before_it_is_read():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(struct.pack(">Q", 1 << 40))
        with pytest.raises(Refused, match="at most"):
            frames.receive(there, 1000)


def test_arrays_are_checked_by_name_shape_and_value():
    shapes = {"a": (2, 3), "b": ()}
    good = {"a": np.ones((2, 3), np.float32), "b": np.float32(1).reshape(())}
    check_arrays(good, shapes, "x")
    for wrong in (
        {"a": good["a"]},
        good | {"c": good["a"]},
        good | {"a": good["a"].T},
        good | {"b": np.float32("inf").reshape(())},
        good | {"a": np.full((2, 3), np.nan, np.float32)},
    ):
        with pytest.raises(Refused):
            check_arrays(wrong, shapes, "x")
    assert shapes_of_fields(shapes_to_fields(shapes)) == shapes
    for entry in ("a", "a 3xb", "a -1", "a 9999999999999"):
        with pytest.raises(Refused):
            shapes_of_fields([entry])


def test_the_hash_of_a_model_depends_on_every_bit_and_name():
    model = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    found = hash_of(model)
    assert found == hash_of(dict(reversed(model.items())))
    changed = model["a"].copy()
    changed.view(np.uint32)[0, 0] ^= 1
    others = [model | {"a": changed}, {"c": model["a"], "b": model["b"]}]
    others += [model | {"a": model["a"].reshape(3, 2)}]
    assert len({found, *map(hash_of, others)}) == 4


# --- the link -------------------------------------------------------------------------------------

MODEL = {"body": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def link(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "x.sock"
    link = Link(path, {"seed": "17"}, lambda a, b: None if a == b else "seed differs")
    link.open()
    link.announce(Announcement("x", ["en", "it"], "t", hash_of(MODEL), MODEL))
    yield link
    link.close(0.1)


@pytest.fixture
def joined(link):
    ask(link, Parcel("join", {"protocol": PROTOCOL, "terms": ["seed 17"], "sources": []}))
    return link


def ask(link, parcel):
    """As the ClientApp does, called as Flower calls it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(to_record(parcel), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"socket": str(link.path)},
        state=RecordDict(),
        run_config={},
    )
    return of_record(client_app.app(message, context).content)


def round_of(index, nonce="n", drawn=("en",), arrays=MODEL):
    fields = {"round": index, "rounds": 3, "nonce": nonce, "drawn": list(drawn)}
    fields |= {"averaged": [], "outside": []}
    return Parcel("round", fields, arrays=dict(arrays))


def update_of(index, nonce="n"):
    fields = {"round": index, "nonce": nonce, "refusal": "", "silo": "x", "sources": ["en"]}
    return Parcel("update", fields | {"left_out": []}, {}, {"en/body": MODEL["body"]})


def test_the_client_app_passes_messages_to_the_trainer(link):
    joined = ask(link, Parcel("join", {"protocol": PROTOCOL, "terms": ["seed 17"], "sources": []}))
    assert joined.fields["silo"] == "x" and joined.fields["refusal"] == ""
    assert joined.fields["theta"] == hash_of(MODEL)
    started = ask(link, Parcel("start"))
    assert np.array_equal(started.arrays["body"], MODEL["body"])

    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(link, round_of(0))))
    thread.start()
    asked = link.next_round(0, lambda: False)
    assert asked.fields["drawn"] == ["en"] and np.array_equal(asked.arrays["body"], MODEL["body"])
    link.answer(update_of(0))
    thread.join()
    assert_same(answers[0], update_of(0))
    assert_same(ask(link, round_of(0)), update_of(0))  # asked twice, trained once
    assert "later message" in ask(link, round_of(0, nonce="other")).fields["refusal"]


def test_a_server_with_other_settings_is_refused_on_both_sides(link):
    joined = ask(link, Parcel("join", {"protocol": PROTOCOL, "terms": ["seed 18"], "sources": []}))
    assert joined.fields["refusal"] == "seed differs"
    with pytest.raises(ConfigError, match="differ: seed differs"):
        link.next_round(0, lambda: False)


def test_sources_that_the_server_does_not_allow_are_refused_on_both_sides(link):
    fields = {"protocol": PROTOCOL, "terms": ["seed 17"]}
    for allowed in (["en", "it", "zh"], []):  # a list, or any
        assert ask(link, Parcel("join", fields | {"sources": allowed})).fields["refusal"] == ""
    joined = ask(link, Parcel("join", fields | {"sources": ["en", "zh"]}))
    assert "['en', 'it'] are not of this federation" in joined.fields["refusal"]
    with pytest.raises(ConfigError, match="allow_source_changes: false"):
        link.next_round(0, lambda: False)


def test_a_source_may_leave_only_if_the_server_allows_it(link):
    fields = {"protocol": PROTOCOL, "terms": ["seed 17"]}
    link.announce(Announcement("x", ["en", "it"], "t", hash_of(MODEL), MODEL, leaving=["it"]))
    assert ask(link, Parcel("join", fields | {"sources": []})).fields["leaving"] == ["it"]
    joined = ask(link, Parcel("join", fields | {"sources": ["en", "it"]}))
    assert "it takes out it, and the server has" in joined.fields["refusal"]


def test_a_trainer_answers_nothing_before_it_has_joined(link):
    """The server may know an earlier process of this silo, with other sources."""
    for parcel in (Parcel("start"), round_of(0)):
        with pytest.raises(RuntimeError, match=r"no trainer of this silo answers \(the other"):
            ask(link, parcel)
    ask(link, Parcel("join", {"protocol": PROTOCOL, "terms": ["seed 17"], "sources": []}))
    assert ask(link, Parcel("start")).kind == "started"


def test_a_round_that_does_not_fit_is_refused(joined):
    link = joined
    for wrong, why in (
        (round_of(0, drawn=["zh"]), "does not have"),
        (round_of(0, arrays={"body": MODEL["body"].T}), "has shape"),
        (round_of(0, arrays={"body": MODEL["body"] * np.nan}), "NaN"),
        (round_of(0, arrays={}), "lacks array body"),
    ):
        assert why in ask(link, wrong).fields["refusal"]
    with pytest.raises(RuntimeError, match="no trainer"):  # larger than the model
        ask(link, round_of(0, arrays=MODEL | {"more": np.zeros(9, np.float32)}))


def test_a_trainer_that_is_asked_to_end_does_not_wait(link):
    assert link.next_round(0, lambda: True) is None


def test_the_socket_is_for_this_user_alone_and_for_one_trainer(link):
    assert link.path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="another trainer listens"):
        Link(link.path, {}, lambda a, b: None).open()
    with pytest.raises(ConfigError, match="longer than"):
        Link(link.path.with_name("x" * 100), {}, lambda a, b: None).open()
    link.close(0.1)
    with pytest.raises(RuntimeError, match="no trainer of this silo answers"):
        ask(link, Parcel("start"))
