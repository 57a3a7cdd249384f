"""Where mres writes: folders and files of this machine, never a store."""

import os
import re
from pathlib import Path

from mres.credentials import without_credentials
from mres.errors import UserError

# As a `Path`, a URL has lost one of its slashes.
_URL = re.compile(r"((?:\w+::)*[A-Za-z][A-Za-z0-9+.-]+):/+")


def check_local(out: str | Path) -> None:
    """Whether `out`, as it was given (before it is made absolute), may be a place to write to.

    Raises:
        UserError: it is a URL, which would become folders of that name, whatever credentials are in it.
    """
    if found := _URL.match(text := os.fspath(out)):
        url = without_credentials(f"{found[1]}://{text[found.end() :]}")
        raise UserError(f"mres writes to no store: write into a local folder and copy it to '{url}'")
