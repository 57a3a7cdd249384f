"""Ranges of one version of a file, as drivers of fsspec can ask stores for them: of another one, the answer is HTTP 412."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Versions:
    """How a driver tells a file's version, and reads bytes of it.

    Attributes:
        key: what holds the version in its `info`.
        read: (driver, path, start, end, version) → the bytes [start, end).
    """

    key: str
    read: Callable[[Any, str, int, int, str], Awaitable[bytes]]

    def of(self, info: dict[str, Any]) -> str | None:
        """The version; None where the store tells none that bytes are held to."""
        found = str(info.get(self.key) or "")
        return None if not found or found.startswith("W/") else found  # a weak ETag is of alike files, too


async def _of_http(driver: Any, path: str, start: int, end: int, version: str) -> bytes:
    headers = {**driver.kwargs.get("headers", {}), "If-Match": version}  # beside those of the user's configuration
    return bytes(await driver._cat_file(path, start=start, end=end, headers=headers))


async def _of_s3(driver: Any, path: str, start: int, end: int, version: str) -> bytes:
    bucket, key, _ = driver.split_path(path)
    given = {"Range": f"bytes={start}-{end - 1}", "IfMatch": version, **driver.req_kw}
    answer = await driver._call_s3("get_object", Bucket=bucket, Key=key, **given)
    async with answer["Body"] as body:
        return bytes(await body.read())


async def _of_google(driver: Any, path: str, start: int, end: int, version: str) -> bytes:
    headers = {"Range": f"bytes={start}-{end - 1}"}
    _, content = await driver._call("GET", driver.url(path), headers=headers, ifGenerationMatch=version)
    return bytes(content)


_HTTP, _S3, _GOOGLE = Versions("ETag", _of_http), Versions("ETag", _of_s3), Versions("generation", _of_google)
VERSIONS = {"http": _HTTP, "https": _HTTP, "s3": _S3, "s3a": _S3, "gs": _GOOGLE, "gcs": _GOOGLE}
