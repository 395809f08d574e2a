"""The ClientApp of a silo: it passes messages of Flower to the trainer, and replies back.

Flower starts a process for each message, so this one imports neither torch nor the trainer, and
holds nothing. The trainer listens on a Unix socket, whose path the silo gives to its own SuperNode:
``--node-config 'socket="..."'``.
"""

from __future__ import annotations

import socket

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from dept.transport.flower import frames
from dept.transport.flower.record import of_record, to_record

LIMIT = 1 << 40
"""The trainer is of this silo, and checks itself what it sends."""

app = ClientApp()


@app.train()
def pass_on(message: Message, context: Context) -> Message:
    """Ask the trainer, and reply with its answer.

    Args:
        message: a message of the server.
        context: that of the node; ``node_config`` has the path of the socket.

    Raises:
        RuntimeError: no trainer listens; Flower sends the sentence to the server.
    """
    path = str(context.node_config.get("socket", ""))
    parcel = of_record(message.content)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            frames.send(connection, parcel)
            reply = frames.receive(connection, LIMIT)
        except OSError as error:
            why = error.strerror or error
            raise RuntimeError(f"no trainer of this silo answers ({why})") from None
    return Message(to_record(reply), reply_to=message)
