"""Who may ask what in a federation: certificates, keys, apps, and the operator's requests."""

import asyncio
import hashlib
import io
import socket
import ssl
import threading
import zipfile
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk

from dept.transport.flower import keys, supernode_process
from dept.transport.flower.superlink import OnlyHere, allowed


def handshake(folder, host):
    """The error of a TLS client that knows the authority alone; ``None`` if there is none."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / keys.CERTIFICATE, folder / keys.KEY)
    client = ssl.create_default_context(cafile=folder / keys.CA)
    here, there = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(there, server_side=True).close()
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(here, server_hostname=host).close()
        return None
    except ssl.SSLError as error:
        return error
    finally:
        here.close()
        thread.join()


def test_the_certificate_is_of_the_servers_hosts_alone(tmp_path):
    assert keys.main(["server", "fed.example.org", "192.0.2.7", "--to", str(tmp_path)]) == 0
    for host in ("fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        assert handshake(tmp_path, host) is None
    for host in ("example.org", "192.0.2.8"):
        assert isinstance(handshake(tmp_path, host), ssl.SSLCertVerificationError)
    other = tmp_path / "other"
    keys.make_server(["fed.example.org"], other)
    (tmp_path / keys.CA).write_bytes((other / keys.CA).read_bytes())
    assert isinstance(handshake(tmp_path, "fed.example.org"), ssl.SSLCertVerificationError)


def test_keys_are_of_this_user_alone_and_never_replaced(tmp_path, capsys):
    arguments = ["silo", "north", "--to", str(tmp_path)]
    assert keys.main(arguments) == 0
    private = tmp_path / "north.key"
    assert private.stat().st_mode & 0o077 == 0
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key.curve, ec.SECP384R1)
    public = load_ssh_public_key((tmp_path / "north.pub").read_bytes())
    assert public.public_numbers() == key.public_key().public_numbers()
    before = private.read_bytes()
    capsys.readouterr()
    assert keys.main(arguments) == 2 and "north.key exists" in capsys.readouterr().err
    assert private.read_bytes() == before


def test_a_silo_runs_no_app_but_its_own():
    fab = build_fab_from_disk(supernode_process.APP)
    assert supernode_process.own_app() == hashlib.sha256(fab).hexdigest()
    names = zipfile.ZipFile(io.BytesIO(fab)).namelist()
    assert sorted(names) == [".info/CONTENT", "pyproject.toml"]  # no code
    get = supernode_process.checked(
        lambda run: SimpleNamespace(content=run), supernode_process.own_app()
    )
    assert get(fab).content == fab
    for other in (fab + b"\0", b"", fab[:-1]):
        with pytest.raises(supernode_process.OtherApp):
            get(other)


@pytest.mark.parametrize(
    ("path", "host", "expected"),
    [
        ("/v1/fleet/pull-messages", "192.0.2.7", True),
        ("/health", "192.0.2.7", True),
        ("/v1/control/start-run", "192.0.2.7", False),
        ("/v1/control/register-node", "2001:db8::1", False),
        ("/v1/runtime/push-task-output", "10.0.0.4", False),
        ("/docs", "192.0.2.7", False),
        ("/v1/fleet/../control/start-run", "192.0.2.7", True),  # routed as it is written: no route
        ("/v1/control/start-run", "127.0.0.1", True),
        ("/v1/control/start-run", "::1", True),
        ("/v1/control/start-run", "", False),
        ("/v1/control/start-run", "localhost", False),
    ],
)
def test_only_the_servers_own_machine_controls_it(path, host, expected):
    scope = {"type": "http", "path": path, "client": (host, 1)}
    assert allowed(scope) == expected
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        sent.append(message)

    asyncio.run(OnlyHere(app)(scope, None, send))
    assert bool(passed) == expected
    assert expected or (sent[0]["status"], len(sent)) == (403, 2)


def test_a_websocket_and_a_request_without_an_address_are_refused():
    assert not allowed({"type": "websocket", "path": "/v1/control/x", "client": ("192.0.2.7", 1)})
    assert not allowed({"type": "http", "path": "/v1/control/x", "client": None})
