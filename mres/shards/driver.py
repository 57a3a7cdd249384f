"""Files of a remote store through fsspec: every attempt bounded in time, what may pass tried again.

Where a store is and who asks is told to its driver, not to mres:

- `s3://bucket/…`: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3='{"anon": true}' for a public
  bucket; FSSPEC_S3_ENDPOINT_URL (or AWS_ENDPOINT_URL) for any store but Amazon's.
- `gs://bucket/…`: GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`; FSSPEC_GS_TOKEN=anon for
  a public bucket.
- `https://host/…`: ~/.netrc, or FSSPEC_HTTPS='{"client_kwargs": {"headers": {"Authorization": "…"}}}'; HTTPS_PROXY.

Any other option of a driver goes into FSSPEC_<SCHEME> or a file in ~/.config/fsspec (fsspec's own configuration).
"""

import asyncio
import concurrent.futures
import errno
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from mres.errors import UserError, install
from mres.shards.daemons import in_daemon
from mres.shards.failures import Failure, classify, describe, http_status
from mres.shards.versions import VERSIONS

T = TypeVar("T")

_QUIET = logging.NullHandler()  # drivers log tracebacks of what is raised to us as well
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 20.0
_TIMEOUTS = (concurrent.futures.TimeoutError, asyncio.TimeoutError)  # one class only since Python 3.11
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of somebody who may read there (S3 answers "
    "so, too, where a file is missing and the folder may not be listed)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`, as somebody who may "
    "read there",
    "http": "put a login that may read there into ~/.netrc",
}
_CREDENTIALS |= {"s3a": _CREDENTIALS["s3"], "gcs": _CREDENTIALS["gs"], "https": _CREDENTIALS["http"]}


class Driver:
    """What fsspec knows of one location. It belongs to the process that made it; its threads may share it.

    Every method raises FileNotFoundError where there is no such file, and UserError where the store refuses, or where
    the last of `retries` + 1 attempts failed. `on_retry` is called before each further attempt.
    """

    def __init__(self, location: str, timeout_s: float, retries: int, on_retry: Callable[[], None]) -> None:
        self._location, self._timeout_s, self._retries, self._on_retry = location, timeout_s, retries, on_retry
        self._protocol = location.split("://", 1)[0].lower()
        self._versions = VERSIONS.get(self._protocol)
        self.tags: dict[str, str] = {}  # the versions that the store has told with the sizes
        self._lock = Lock()
        self._connected: Any = None

    def size(self, url: str) -> int:
        """Bytes of the file at `url`."""
        return self._retried(url, "", lambda: self._size(url))

    def read(self, url: str, max_bytes: int) -> bytes:
        """All bytes of the file at `url`, of at most so many."""
        return self._retried(url, "", lambda: self._read(url, max_bytes))

    def read_range(self, url: str, start: int, end: int, tag: str | None = None) -> bytes:
        """The bytes [start, end) of the file at `url`, which has at least `end` bytes, and still is `tag`'s version."""
        what = f"bytes {start} to {end - 1} of "
        return self._retried(url, what, lambda: self._read_range(url, start, end, tag))

    def _read_range(self, url: str, start: int, end: int, tag: str | None) -> bytes:
        if tag is None or self._versions is None:
            content = self._call("cat_file", url, start=start, end=end)
        else:
            driver = self._filesystem()
            content = self._awaited(self._versions.read(driver, driver._strip_protocol(url), start, end, tag))
        return _whole(content, end - start)

    def _read(self, url: str, max_bytes: int) -> bytes:
        content = self._call("cat_file", url)
        if len(content) > max_bytes:
            raise UserError(f"'{url}' has {len(content):,} bytes; of such a file, at most {max_bytes:,} are read")
        return _whole(content, self._size(url))

    def _size(self, url: str) -> int:
        found = self._call("info", url)
        if found.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "it is a folder, not a file", url)
        if found.get("size") is None:
            raise UserError(f"the store does not tell the size of '{url}'; use one that does (Content-Length)")
        if self._versions and (tag := self._versions.of(found)):
            self.tags[url] = tag
        return int(found["size"])

    def _retried(self, url: str, part: str, attempt: Callable[[], T]) -> T:
        for number in range(1, self._retries + 2):
            try:
                return attempt()
            except UserError:
                raise
            except Exception as error:
                problem = error
                self._give_up_unless_passing(url, error)
            if number <= self._retries:
                self._on_retry()
                time.sleep(_pause_s(number))
        attempts = "1 attempt" if self._retries == 0 else f"{self._retries + 1} attempts"
        raise UserError(
            f"cannot fetch {part}'{url}': {attempts} failed, the last with: {describe(problem)}; check "
            "the network and the store, or allow more retries or a longer time-out"
        ) from problem

    def _give_up_unless_passing(self, url: str, error: Exception) -> None:
        failure, text = classify(error), describe(error)
        if failure is Failure.ABSENT:
            raise FileNotFoundError(errno.ENOENT, "no such file", url) from error
        if failure is Failure.FORBIDDEN:
            remedy = _CREDENTIALS.get(self._protocol, "check the credentials of its fsspec driver")
            raise UserError(f"the store refuses access to '{url}': {text}; {remedy}") from error
        if http_status(error) == 412 or isinstance(error, FileExistsError):  # so gcsfs says it
            raise UserError(f"'{url}' was replaced in the store while it was read; start again") from error
        if failure is Failure.REFUSED:
            raise UserError(f"cannot fetch '{url}': {text}; check the URL and the store") from error

    def _call(self, method: str, url: str, **span: Any) -> Any:
        """A method of the driver, given up after the time-out. Async ones are cancelled then; others are left behind."""
        filesystem = self._filesystem()
        path = filesystem._strip_protocol(url)
        if filesystem.async_impl:
            return self._awaited(getattr(filesystem, f"_{method}")(path, **span))
        return self._in_time(in_daemon(partial(getattr(filesystem, method), path, **span)))

    def _awaited(self, coroutine: Any) -> Any:
        return self._in_time(asyncio.run_coroutine_threadsafe(coroutine, self._filesystem().loop))

    def _in_time(self, future: Future) -> Any:
        try:
            return future.result(self._timeout_s)
        except _TIMEOUTS:
            future.cancel()
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from None

    def _filesystem(self) -> Any:
        with self._lock:
            if self._connected is None:  # some drivers look for credentials in the network already here
                self._connected = self._in_time(in_daemon(self._connect))
        return self._connected

    def _connect(self) -> Any:
        import fsspec  # type: ignore[import-untyped]

        try:
            kind = fsspec.get_filesystem_class(self._protocol)
        except ImportError as error:
            needed = f"{install('remote')} for S3 and Google's store"
            raise UserError(f"nothing is installed that reads '{self._location}' ({error}); {needed}") from None
        except ValueError:
            raise UserError(f"'{self._location}': fsspec knows no '{self._protocol}://'; check the URL") from None
        ours, users = _options(self._protocol, self._timeout_s), fsspec.config.apply_config(kind, {})
        logging.getLogger(kind.__module__.split(".")[0]).addHandler(_QUIET)
        options = _merged(ours, {name: users[name] for name in ours if name in users})
        filesystem, _ = fsspec.core.url_to_fs(self._location, skip_instance_cache=True, **options)
        if hasattr(filesystem, "retries"):  # s3fs: one loop of attempts is enough
            filesystem.retries = 1
        return filesystem


def _options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """What drivers are told, beneath what the user's configuration tells them."""
    if protocol in ("s3", "s3a"):
        once = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": once}}
    if protocol in ("http", "https"):
        import aiohttp

        # Compressed bodies would have other sizes and offsets; trust_env: proxies and ~/.netrc.
        headers = {"Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        return {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
    return {}


def _merged(ours: dict[str, Any], users: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(ours[name], users[name])
        for name in ours.keys() & users.keys()
        if isinstance(ours[name], dict) and isinstance(users[name], dict)
    }
    return {**ours, **users, **both}


def _whole(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise OSError(f"the body ended after {len(content)} of {size} bytes")
    if len(content) > size:
        raise UserError(
            f"the store sent {len(content)} bytes where {size} were asked for: it answers no range requests, or the "
            "file was replaced; use a store that does, or start again"
        )
    return content


def longest_wait_s(timeout_s: float, retries: int) -> float:
    """How long one call to a silent store takes at most, with all its attempts and the pauses between them."""
    growing = min(retries, 10)
    pauses_s = sum(map(_longest_pause_s, range(1, growing + 1))) + (retries - growing) * _LONGEST_PAUSE_S
    return (retries + 1) * timeout_s + pauses_s


def _pause_s(number: int) -> float:
    """Before attempt `number` + 1; drawn from the system's randomness, as no other draw may depend on it."""
    longest = _longest_pause_s(number)
    return random.SystemRandom().uniform(longest / 2, longest)


def _longest_pause_s(number: int) -> float:
    return min(_FIRST_PAUSE_S * 2 ** min(number - 1, 30), _LONGEST_PAUSE_S)
