"""Credentials in URLs: found, so that a config with them is refused, and taken out of whatever is printed or saved.

What a run was started with goes into its folder, its checkpoints, its exports and its reports, and those are handed on.
"""

import re
from typing import Any

REMEDY = (
    "give them where the store's driver looks: AWS_PROFILE or ~/.aws/credentials for s3://, GOOGLE_APPLICATION_CREDENTIALS "
    "for gs://, AZURE_STORAGE_… for abfs://, ~/.netrc or FSSPEC_HTTPS for https:// (docs/data-stream.md)"
)
_HIDDEN = "…"
# In these, what stands before the "@" is a container, or a login that is none without its key.
_NAME_ALONE = "(?:abfss?|wasbs?|az|adl|ssh|sftp|scp|git|hdfs|webhdfs|smb):"
# As a `pathlib.Path`, a URL has one slash; other words before ":/" are as well folders.
_STORE = "(?:s3a?|gs|gcs|https?|ftps?|abfss?|wasbs?|az|adl|hf|r2|oss|cos|oci|ssh|sftp|webdav|minio|b2|dbfs|hdfs)"
_SECRET = (
    "(?:sig|signature|sas|(?:access|auth|id|session)?token|secret|password|passwd|passphrase|pwd|credentials?|auth|"
    "authorization|(?:api|access|secret|secretaccess|account|private)?key|AWSAccessKeyId|GoogleAccessId)"
)


class _Finder:
    """What is replaced in a text, in which a URL ends at any character of `end`; every repetition is bounded."""

    def __init__(self, end: str) -> None:
        scheme = f"(?<![a-z0-9+.-])(?:[a-z][a-z0-9+.-]{{0,30}}://|{_STORE}:/)"
        self._logins = [
            # A password may have any character; a port (host:8080/…) is none.
            re.compile(rf"({scheme})[^/@:{end}]{{0,200}}:(?!\d{{1,5}}(?:[/?#{end}]|$))[^{end}]{{0,300}}@", re.I),
            re.compile(rf"((?!{_NAME_ALONE}){scheme})[^/?#{end}]{{1,300}}@", re.I),
        ]
        self._url = re.compile(rf":/[^{end}]+")
        self._in_query = re.compile(
            rf"([?&;#](?:[^=&;?#]{{0,60}}[-_.])?{_SECRET}(?:[-_.][^=&;?#]{{0,60}})?=)[^&;#{end}]+", re.I
        )
        self._in_account = re.compile(rf"((?:AccountKey|SharedAccessSignature|SharedAccessKey)=)[^;{end}]+", re.I)

    def redacted(self, text: str) -> str:
        for login in self._logins:
            text = login.sub(r"\1", text)
        text = self._in_account.sub(rf"\1{_HIDDEN}", text)
        return self._url.sub(lambda url: self._in_query.sub(rf"\1{_HIDDEN}", url[0]), text)


_IN_TEXT, _ALONE = _Finder(r"\s'\"<>"), _Finder(r"\0")


def redacted(text: str) -> str:
    """A text without the credentials of the URLs in it."""
    return _IN_TEXT.redacted(text)


def without_credentials(location: str) -> str:
    """A path or URL without the credentials in it; itself, where it has none."""
    return _ALONE.redacted(location)


def cleaned(value: Any) -> Any:
    """A value of JSON without the credentials of the URLs in its texts."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def refusal(location: str) -> str | None:
    """What to say about a path or URL that has credentials in it; None, if it has none."""
    shown = without_credentials(location)
    if shown == location:
        return None
    return f"'{redacted(shown)}' has credentials in it, which would be saved and handed on with the run; {REMEDY}"
