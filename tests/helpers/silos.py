"""A grid of Flower without processes: silos are functions, and time is a number."""

from types import SimpleNamespace

import numpy as np
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from dept.config.options import DeptOptions
from dept.method.outer_optimizer import OuterOptimizer
from dept.training.federation.server import Server, model_of
from dept.training.federation.server_files import ServerFiles, ServerState
from dept.transport.flower.link import Announcement
from dept.transport.flower.messages import PROTOCOL, Parcel, shapes_to_fields
from dept.transport.flower.record import of_record, to_record
from dept.transport.flower.silos import Silos
from dept.transport.flower.theta import hash_of

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

TERMS = {"seed": "17"}


def start_model():
    """A global model of two parameters."""
    draw = np.random.default_rng(0)
    return {
        "body": draw.normal(size=(3, 2)).astype(np.float32),
        "wte": draw.normal(size=(5, 2)).astype(np.float32),
    }


class FakeSilo:
    """Trains by adding a number of its own to each parameter; it may fail in many ways."""

    def __init__(self, name, sources, rows=None, by_row=()):
        model = start_model()
        rows = rows or {}
        self.announcement = Announcement(
            name, list(sources), "t", hash_of(model), model, rows, list(by_row)
        )
        self.name, self.rows, self.by_row = name, rows, by_row
        self.rounds, self.messages = [], []
        self.change = lambda parcel: parcel  # of an update, before it is sent
        self.fails = lambda parcel: None  # reason, "silent", or None
        self.joined = {}  # fields to change in its first message

    def reply(self, parcel):
        self.messages.append(parcel)
        reason = self.fails(parcel)
        if reason is not None:
            return reason
        a = self.announcement
        if parcel.kind == "join":
            fields = {
                "protocol": PROTOCOL,
                "refusal": "",
                "silo": a.silo,
                "sources": a.sources,
                "tokenizer": a.tokenizer,
                "theta": a.theta,
                "parameters": shapes_to_fields(a.shapes),
                "by_row": a.by_row,
                "leaving": a.leaving,
            }
            return Parcel("joined", fields | self.joined, arrays=a.rows)
        if parcel.kind == "start":
            return Parcel("started", arrays=a.model)
        self.rounds.append(parcel)
        arrays = {}
        for source in parcel.fields["drawn"]:
            for name, value in parcel.arrays.items():
                rows = self.rows[source] if name in self.by_row else slice(None)
                arrays[f"{source}/{name}"] = local(source, parcel.fields["round"], value)[rows]
        fields = {"round": parcel.fields["round"], "nonce": parcel.fields["nonce"], "refusal": ""}
        fields |= {"silo": self.name, "sources": list(parcel.fields["drawn"]), "left_out": []}
        metrics = {f"{s}/train_loss": 1.0 for s in parcel.fields["drawn"]}
        return self.change(Parcel("update", fields, metrics, arrays))


def local(source, round_index, value):
    """The local model of a source."""
    step = (1 + len(source) + ord(source[0]) % 7 + round_index) / 8
    return (value * np.float32(1.25) + np.float32(step)).astype(np.float32)


class FakeGrid:
    """Flower's grid, over silos by number of their node."""

    def __init__(self, silos):
        self.silos, self.online = dict(enumerate(silos, 1)), set(range(1, len(silos) + 1))
        self.ready, self.held, self.count = {}, {}, 0

    def get_node_ids(self):
        return list(self.online)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            node, message_id = message.metadata.dst_node_id, f"m{self.count}"
            message.metadata.__dict__["_message_id"] = message_id
            reply = self.silos[node].reply(of_record(message.content))
            ids.append(message_id)
            if reply == "silent":
                self.held[message_id] = (node, message)
                continue
            if isinstance(reply, str):
                answer = Message(Error(0, reply), reply_to=message)
            else:
                answer = Message(to_record(reply), reply_to=message)
            self.ready[message_id] = answer
        return ids

    def release(self):
        """Let silos answer what they have kept silent about."""
        for message_id, (node, message) in self.held.items():
            reply = self.silos[node].reply(of_record(message.content))
            self.ready[message_id] = Message(to_record(reply), reply_to=message)
        self.held = {}

    def pull_messages(self, ids):
        return [self.ready.pop(i) for i in ids if i in self.ready]


def serve(silos, folder, *, rounds=3, outer=None, every=None, grid=None, limit=10_000, **options):
    """Run a server over fake silos; returns it, its grid, and what it has said.

    ``every`` is called with the grid and the second at each look at the silos.
    """
    grid = grid or FakeGrid(silos)
    said, now = [], SimpleNamespace(time=0.0)
    sources = [s for silo in silos for s in silo.announcement.sources]
    federation = {"sources": sources, "grace": 60, "round_timeout": 600}
    federation |= options.pop("federation", {})
    dept = DeptOptions(
        variant=options.pop("variant", "glob"),
        local_steps=3,
        federation=federation,
        outer_optimizer=outer or {"name": "nesterov", "lr": 0.5, "momentum": 0.5},
        **options,
    )
    files = ServerFiles(folder)
    state = files.load() or ServerState(terms=TERMS)

    def sleep():
        now.time += 1.0
        if now.time > limit:
            raise TimeoutError("\n".join(said))
        if every is not None:
            every(grid, now.time)

    server = Server(
        options=dept,
        seed=17,
        rounds=rounds,
        silos=Silos(
            grid,
            TERMS,
            federation.get("sources", sources),
            said.append,
            is_open=dept.allow_source_changes,
            model=model_of(state),
            is_new=state.round == 0,
            clock=lambda: now.time,
        ),
        files=files,
        outer_optimizer=OuterOptimizer(**dept.outer_optimizer),
        state=state,
        say=said.append,
        clock=lambda: now.time,
        sleep=sleep,
    )
    server.run()
    return server, grid, said
