"""An S3 server on loopback: moto's, behind a middleware that counts, slows and stops answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

BUCKET = "corpora"
CHUNK = 1024  # bytes


class S3Server:
    """Serves one bucket; a context manager, and the WSGI middleware.

    ``requests`` holds ``(method, key)`` of every request, in order of arrival; ``gate``, while it
    is cleared, stops answers about shards after their first chunk.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.seconds_per_chunk = 0.0
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self, threaded=True, request_handler=MotoRequestHandler
        )

    def __enter__(self) -> S3Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a client of this process, or of another, talk to the server."""
        return {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # or boto looks for credentials off this machine
        }

    @property
    def client(self) -> Any:
        """That talks to the server at once."""
        from boto3.session import Session

        environment = self.environment
        return Session(
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        ).client("s3", endpoint_url=environment["S3_ENDPOINT_URL"])

    def upload(self, root: Path, prefix: str) -> str:
        """Put the files below ``root`` into the bucket; returns their address."""
        client = self.client
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(root.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(root).as_posix()}"
                client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        self.requests.clear()
        return f"s3://{BUCKET}/{prefix}"

    def fetched(self, suffix: str = "") -> list[str]:
        """Keys that were got, in order of the requests, whose names end with ``suffix``."""
        return [k for method, k in self.requests if method == "GET" and k.endswith(suffix)]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        self.requests.append((environ["REQUEST_METHOD"], key))
        return self._slowly(key, self._application(environ, start_response))

    def _slowly(self, key: str, body: Iterable[bytes]) -> Iterator[bytes]:
        for piece in body:
            for first in range(0, len(piece), CHUNK):
                yield piece[first : first + CHUNK]
                if key.endswith(".mds"):
                    time.sleep(self.seconds_per_chunk)
                    self.gate.wait()
