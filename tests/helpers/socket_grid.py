"""Flower's grid without Flower: it takes messages to the sockets of trainers, and keeps them."""

import socket
import threading

from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from dept.transport.flower import frames
from dept.transport.flower.record import of_record, to_record


class SocketGrid:
    """Silos by number of their node, each reached at its socket as by its ClientApp.

    ``check`` is called whenever the server asks for replies, and raises if none can come. Replies
    to messages for which ``is_held`` is true are on their way, but for errors.
    """

    def __init__(self, paths, before_push=lambda parcel, node: None, check=lambda: None):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.paths = dict(enumerate(paths, 1))
        self.online, self.messages = set(self.paths), []
        self.before_push, self.check = before_push, check
        self.is_held = lambda parcel: False
        self._asked = {}
        self._ready, self._count, self._lock = {}, 0, threading.Lock()

    def get_node_ids(self):
        return list(self.online)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.before_push(of_record(message.content), message.metadata.dst_node_id)
            self._count += 1
            ids.append(f"m{self._count}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            threading.Thread(target=self._carry, args=(message,), daemon=True).start()
        return ids

    def pull_messages(self, ids):
        self.check()
        with self._lock:
            there = [i for i in ids if i in self._ready]
            ready = [
                i for i in there if self._ready[i].has_error() or not self.is_held(self._asked[i])
            ]
            return [self._ready.pop(i) for i in ready]

    def _carry(self, message):
        parcel = of_record(message.content)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.paths[message.metadata.dst_node_id]))
                frames.send(connection, parcel)
                reply = frames.receive(connection, 1 << 30)
            answer = Message(to_record(reply), reply_to=message)
        except OSError as error:
            reply, answer = None, Message(Error(0, str(error)), reply_to=message)
        with self._lock:
            self.messages.append((parcel, reply))
            self._asked[message.metadata.message_id] = parcel
            self._ready[message.metadata.message_id] = answer
