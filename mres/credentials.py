"""Credentials in URLs: found, so that a config with them is refused, and taken out of whatever is printed or saved.

What a run was started with goes into its folder, its checkpoints, its exports and its reports, and those are handed on.
"""

import re
from typing import Any
from urllib.parse import unquote

REMEDY = (
    "give them where the store's driver looks: AWS_PROFILE or ~/.aws/credentials for s3://, GOOGLE_APPLICATION_CREDENTIALS "
    "for gs://, AZURE_STORAGE_… for abfs://, ~/.netrc or FSSPEC_HTTPS for https:// (docs/data-stream.md)"
)
_HIDDEN = "…"
# In these, what stands before the "@" is a container, or a login that is none without its key.
_NAME_ALONE = "(?:abfss?|wasbs?|az|adl|ssh|sftp|scp|git|hdfs|webhdfs|smb):"
# As a `pathlib.Path`, a URL has one slash; other words before ":/" are as well folders.
_STORE = "(?:s3a?|gs|gcs|https?|ftps?|abfss?|wasbs?|az|adl|hf|r2|oss|cos|oci|ssh|sftp|webdav|minio|b2|dbfs|hdfs)"
# In these, a bucket stands for the host, and has no port.
_BUCKET = "(?:s3a?|gs|gcs|r2|oss|cos|oci|b2)"
_SECRET = (
    "(?:sig|signature|sas|hmac|jwt|bearer|(?:access|auth|id|session)?token|secret|pass[-_]?word|passwd|passphrase|pwd|"
    "userpass|credentials?|auth|authorization|(?:api|access|auth|secret|secretaccess|account|private)?key|"
    "AWSAccessKeyId|GoogleAccessId)"
)
# Parts of names that say nothing: a country_code, a session_length.
_SECRET_NAME = re.compile(
    rf"(?:.{{0,60}}[-_.\[])?{_SECRET}(?:[-_.\]].{{0,60}})?|code|pw|pass|sign|ticket|session|session[-_]?id", re.I
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|"
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}|sk-(?:(?:proj|svcacct|admin|ant-[a-z0-9]+)-[\w-]{20,}|[A-Za-z0-9]{20,})|"
    r"(?:AKIA|ASIA)[A-Z0-9]{12,}:[A-Za-z0-9/+=]{16,})"
)


def names_secret(key: str) -> bool:
    """Whether a key, of a query or a file, is named like one whose value is a credential."""
    return _SECRET_NAME.fullmatch(unquote(key)) is not None


class _Finder:
    """What is replaced in a text, in which a URL ends at any character of `end`; every repetition is bounded."""

    def __init__(self, end: str) -> None:
        scheme = rf"(?<![a-z0-9+.-])(?:[a-z][a-z0-9+.-]{{0,30}}://|{_STORE}:[/\\])"
        begin, colon, at = rf"(?<![^={end}])", "(?::|%3A)", "(?:@|%40)"
        self._logins = [
            # A password may have any character; a port (host:8080/…) is none.
            re.compile(
                rf"({scheme})[^/@:{end}]{{0,200}}{colon}(?!\d{{1,5}}(?:[/?#{end}]|$))[^{end}]{{0,300}}{at}", re.I
            ),
            re.compile(rf"((?<![a-z0-9+.-]){_BUCKET}://?)[^/@:{end}]{{0,200}}{colon}[^{end}]{{0,300}}{at}", re.I),
            re.compile(rf"((?!{_NAME_ALONE}){scheme})[^/?#{end}]{{1,300}}{at}", re.I),
            # Without a scheme: //user:password@host/…, and scp's user:password@host:/…
            re.compile(rf"({begin}//)[^/@:{end}]{{1,200}}{colon}[^/@{end}]{{1,300}}{at}", re.I),
            re.compile(rf"({begin})[\w.+-]{{1,100}}:[^/@{end}]{{1,300}}@(?=[\w.-]{{1,200}}:/)"),
        ]
        self._url = re.compile(rf"(?::/|{begin}//)[^{end}]+")
        self._in_query = re.compile(rf"([?&;#])([^=&;?#{end}]{{1,160}})=([^&;#{end}]+)")
        self._in_account = re.compile(rf"((?:AccountKey|SharedAccessSignature|SharedAccessKey)=)[^;{end}]+", re.I)

    def redacted(self, text: str) -> str:
        for login in self._logins:
            text = login.sub(r"\1", text)
        text = self._in_account.sub(rf"\1{_HIDDEN}", text)
        text = self._url.sub(lambda url: self._in_query.sub(_without_value, url[0]), text)
        return _TOKEN.sub(_HIDDEN, text)


def _without_value(pair: re.Match[str]) -> str:
    return f"{pair[1]}{pair[2]}={_HIDDEN}" if names_secret(pair[2]) else pair[0]


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
