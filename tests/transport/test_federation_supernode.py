"""A SuperNode whose connection breaks, or which dies, comes back: with a real SuperLink."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from flower_processes import Federation, wait_until
from flwr.supercore.retry import make_simple_http_retry_invoker

from dept.transport.flower import keys
from dept.transport.flower.supernode_process import patient, was_cut


class Door:
    """Forwards connections; while it is shut, it hears what a client says first, and hangs up."""

    def __init__(self, port):
        self.to, self.is_shut, self.refused, self.connections = port, False, 0, []
        self.changing = threading.Lock()  # each connection is refused, or closed by shut()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with self.changing:
            server = None if self.is_shut else self.connect()
            self.connections += [client, server] if server else []
        if server is None:
            client.recv(1 << 16)
            client.close()
            self.refused += self.is_shut
            return
        for ends in ((client, server), (server, client)):
            threading.Thread(target=self.forward, args=ends, daemon=True).start()

    def connect(self):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self.to))

    def forward(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            end.close()

    def shut(self):
        with self.changing:
            self.is_shut = True
            for end in self.connections:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def error_of(port, **options):
    with pytest.raises(httpx.TransportError) as found:
        httpx.get(f"https://localhost:{port}/", **options)
    return found.value


def test_a_handshake_that_is_cut_is_no_wrong_certificate(tmp_path):
    keys.make_server(["localhost"], tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / keys.CERTIFICATE, tmp_path / keys.KEY)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    threading.Thread(target=serve, daemon=True).start()
    wrong = error_of(listener.getsockname()[1])  # it does not know the authority
    door = Door(0)
    door.is_shut = True
    cut = error_of(door.port)
    assert "certificate" in str(wrong).lower() and "ssl" in str(cut).lower()
    assert was_cut(cut) and not was_cut(wrong)
    gives_up = patient(make_simple_http_retry_invoker)().should_giveup
    assert gives_up(wrong) and not gives_up(cut)
    assert make_simple_http_retry_invoker().should_giveup(cut)  # why all this is needed


def test_a_command_is_started_again_until_its_supervisor_is_asked_to_end(tmp_path):
    """Also when the command was killed; and it does not outlive a supervisor that was."""
    command = (
        "import os, sys, time; open('starts', 'a').write(f'{os.getpid()}\\n');"
        "sys.stdin.read(); time.sleep(0.1)"
    )
    script = (
        "import sys; from dept.transport.flower.supernode import keep_running;"
        f"sys.exit(keep_running([sys.executable, '-c', {command!r}], 0.1))"
    )
    starts = tmp_path / "starts"

    def pids():
        return [int(p) for p in starts.read_text().split()] if starts.is_file() else []

    def lives(pid):
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number, expected in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        starts.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
        for count in (1, 2):
            assert wait_until(lambda count=count: len(pids()) == count)
            if count == 1:
                os.kill(pids()[0], signal.SIGKILL)
        process.send_signal(number)
        assert process.wait(600) == expected
        assert wait_until(lambda: not lives(pids()[-1]))
        assert len(pids()) == 2


@pytest.mark.end_to_end
def test_a_supernode_outlives_its_superlink_and_its_parts(tmp_path):
    federation = Federation(tmp_path, {"one": []}, tmp_path)
    log = federation.folder / "one" / "supernode.log"

    def says(text, times=1):
        return wait_until(lambda: log.read_text().count(text) >= times)

    def said(text):
        return log.read_text().count(text)

    try:
        federation.superlink()
        federation.register("one")
        door = Door(federation.port)
        federation.address = lambda silo: f"127.0.0.1:{door.port}"
        supernode = federation.supernode("one")
        assert says("SuperNode ID"), log.read_text()
        door.shut()
        # It is not enough that connections are refused: httpx tries some times by itself, silently;
        # nor that a call has failed, since that may be one whose connection was cut.
        assert says("Connection attempt failed"), log.read_text()
        assert wait_until(lambda: door.refused), log.read_text()
        door.is_shut = False
        assert says("Connection successful"), log.read_text()
        failed, connected = said("Connection attempt failed"), said("Connection successful")
        federation.processes["server/superlink"].kill()
        federation.processes["server/superlink"].wait()
        assert says("Connection attempt failed", times=failed + 1), log.read_text()
        federation.superlink()
        assert says("Connection successful", times=connected + 1), log.read_text()
        assert log.read_text().count("SuperNode ID") == 1  # the same process, all the time
        [superexec] = [
            p for p in federation.family("one/supernode") if "superexec" in str(p.cmdline())
        ]
        superexec.kill()
        assert says("the SuperExec, which starts apps, has died"), log.read_text()
        assert says("another is started"), log.read_text()
        time.sleep(1.0)
        supernode.terminate()
        assert supernode.wait(600) == 0
        assert wait_until(lambda: not federation.family("one/supernode"))
    finally:
        federation.close()
