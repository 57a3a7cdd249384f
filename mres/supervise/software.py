"""Which code runs here: versions of packages, the commit, and a hash of the source."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

SNAPSHOT_INFO = "info.json"  # beside the code of a job's snapshot

_PACKAGES = (
    "mres", "torch", "deepspeed", "timm", "open_clip_torch", "numpy", "simplejpeg", "pillow", "pycocotools", "webdataset",
)  # fmt: skip
_PACKAGE = Path(__file__).resolve().parents[1]


def package_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str | None]:
    """Of installed packages by name; None where there is none."""
    return {name: _version(name) for name in packages}


def code_sha256() -> str:
    """Hash of the package's own source: it tells apart what no commit does."""
    return texts_sha256(
        f"{p.relative_to(_PACKAGE)}\n{p.read_text(encoding='utf-8')}" for p in sorted(_PACKAGE.rglob("*.py"))
    )


def snapshot_info() -> dict[str, Any] | None:
    """What is known of the snapshot that this code is (`<run>/snapshot/code/mres`); None of code that is none."""
    try:
        found = json.loads((_PACKAGE.parents[1] / SNAPSHOT_INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "git_sha" in found else None


def git_sha() -> str | None:
    """The commit that the code is of, where it lies in a repository; of a snapshot, that which it was taken of."""
    if info := snapshot_info():
        return None if info["git_sha"] is None else str(info["git_sha"])
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=_PACKAGE, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def texts_sha256(texts: Iterable[str]) -> str:
    """A short hash of all of them together."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
