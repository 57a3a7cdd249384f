"""Real stores on loopback: moto's S3 server, a folder over HTTP with ranges, and a proxy that makes either one fail."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import boto3
import pytest
from commands import PATIENCE_S, wait_until

from mres.testing import free_port

BUCKET = "bucket"
S3_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Fault:
    """How requests fail: an HTTP status, or "stall", "truncate" (the connection ends within the body), "short" (a
    smaller body, properly ended), "trickle" (a body that never ends), "whole" (the range is ignored), "close" and "reset" (no answer)."""

    kind: int | str
    path: str
    left: float


class Proxy(ThreadingHTTPServer):
    """Hands requests on to `upstream`, a port of this machine, except those that are to fail."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.upstream, self.faults, self.log = upstream, list[Fault](), list[tuple[str, str, str]]()
        self.released, self.together = threading.Event(), None
        self.left = threading.Event()  # a client of a trickle has gone
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, kind: int | str, *, path: str = "", times: float = float("inf")) -> None:
        """The next `times` requests whose path contains `path` fail."""
        self.faults.append(Fault(kind, path, times))

    def wait_for(self, parties: int) -> None:
        """Holds requests back until so many are there at once."""
        self.together = threading.Barrier(parties, timeout=PATIENCE_S)

    def ranges(self, path: str = "") -> list[str]:
        """The ranges that were asked for, in order."""
        return [asked for _, where, asked in self.log if asked and path in where]

    def next_fault(self, path: str) -> int | str | None:
        for fault in self.faults:
            if fault.path in path and fault.left > 0:
                fault.left -= 1
                return fault.kind
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have gone are part of the tests."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        self.server.log.append((self.command, self.path, self.headers.get("Range", "")))
        if self.server.together is not None and "Range" in self.headers:
            self.server.together.wait()
        fault = self.server.next_fault(self.path)
        if fault == "stall":
            self.server.released.wait()
        elif fault == "trickle":
            self._trickle()
        elif fault in ("close", "reset"):
            self._hang_up(reset=fault == "reset")
        elif isinstance(fault, int):
            text = f"<Error><Code>{S3_CODES.get(fault, 'Other')}</Code><Message>made to fail</Message></Error>"
            self._answer(fault, [("Content-Type", "application/xml")], text.encode())
        else:
            self._hand_on(fault)

    do_HEAD = do_GET

    def _hand_on(self, fault: str | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        headers = {name: value for name, value in self.headers.items() if (name, fault) != ("Range", "whole")}
        connection.request(self.command, self.path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        if self.command == "HEAD":
            self._answer(answer.status, kept, b"", answer.getheader("Content-Length"))
        elif fault == "truncate":
            self._answer(answer.status, kept, body[: len(body) // 2], str(len(body)))
            self.close_connection = True
        else:
            self._answer(answer.status, kept, body[: len(body) // 2] if fault == "short" else body)
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", length or str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _trickle(self) -> None:
        self.send_response_only(206)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with suppress(OSError):
            while not self.server.released.wait(0.02):
                self.wfile.write(b"x")
        self.server.left.set()

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def log_message(self, *args: object) -> None:
        pass


_HOP = {"content-length", "transfer-encoding", "connection", "date", "server"}


class _RangeHandler(SimpleHTTPRequestHandler):
    """The standard library's file server, which knows no ranges, with ranges."""

    def do_HEAD(self) -> None:
        if self._may_read():
            super().do_HEAD()

    @staticmethod
    def _tag(path: Path) -> str:
        return f'"{zlib.crc32(path.read_bytes())}"'

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", self._tag(path))
        super().end_headers()

    def _may_read(self) -> bool:
        login = getattr(self.server, "login", None)
        if login is None or self.headers.get("Authorization") == login:
            return True
        self.send_error(401)
        return False

    def do_GET(self) -> None:
        if not self._may_read():
            return None
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().do_GET()
        content, (start, last) = path.read_bytes(), map(int, asked.groups())
        if start >= len(content):
            return self.send_error(416)
        if self.headers.get("If-Match") not in (None, self._tag(path)):
            return self.send_error(412)
        part = content[start : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *args: object) -> None:
        pass


class _GcsHandler(_RangeHandler):
    """As much of Google's JSON API as reading objects takes."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.status != 200:
            return self._json(self.server.status, {"error": {"code": self.server.status, "message": "made to fail"}})
        bucket, _, name = unquote(self.path.split("/b/")[1].split("?")[0]).partition("/o/")
        path = Path(self.directory) / name
        if not name:  # a listing: the driver looks whether the name is a folder
            return self._json(200, {"kind": "storage#objects"})
        if not path.is_file():
            return self._json(404, {"error": {"code": 404, "message": "Not Found"}})
        generation = str(zlib.crc32(path.read_bytes()))
        if "alt=media" not in self.path:
            size = str(path.stat().st_size)
            return self._json(200, {"name": name, "bucket": bucket, "size": size, "generation": generation})
        if (asked := re.search(r"ifGenerationMatch=(\d+)", self.path)) and asked[1] != generation:
            return self._json(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self.path = f"/{name}"
        return super().do_GET()

    def _json(self, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def folder_as_gcs(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """`folder` as a bucket of Google Cloud Storage; every request is answered with the server's `status`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_GcsHandler, directory=str(folder))) as server:
        server.daemon_threads, server.status, server.asked = True, 200, []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def folder_over_http(folder: Path, login: str | None = None) -> Iterator[int]:
    """Serves `folder` on the port that it gives; only to whoever has the `login`, if there is one ("Basic …")."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_RangeHandler, directory=str(folder))) as server:
        server.daemon_threads, server.login = True, login
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def proxied(upstream: int) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    yield proxy
    proxy.released.set()
    proxy.shutdown()
    proxy.socket.close()


@contextmanager
def moto_server() -> Iterator[int]:
    """An S3 server with the bucket `BUCKET`, as a process of its own; the port that it listens on."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, "moto's server")
        assert process.poll() is None, f"moto's server ended with {process.returncode}: is `moto[s3]` installed?"
        s3_client(port).create_bucket(Bucket=BUCKET)
        yield port
    finally:
        process.kill()
        process.wait()


def s3_client(port: int):
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def upload(port: int, folder: Path, prefix: str) -> str:
    """Puts the files of a folder into the bucket; their URL."""
    for path in folder.iterdir():
        s3_client(port).put_object(Bucket=BUCKET, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What a user would set before starting: this process has imported fsspec already, which reads it only then."""
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def in_fork(function, *args) -> int:
    """Starts `function(*args)` in a forked process; its id. The process ends with 0, or 1 where something was raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*args)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def exit_code(pid: int, patience_s: float = PATIENCE_S) -> int:
    """How a forked process ends; one that does not is killed, so that no test waits for ever."""
    deadline = time.monotonic() + patience_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
