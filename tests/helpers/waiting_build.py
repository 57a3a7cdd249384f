"""tools/shard.py that waits for images whose whole content is `WAIT`, until they have another: `waiting_build.py [arguments]`."""

import runpy
import time
from pathlib import Path

from mres.sources import reading

WAIT = b"wait"


def read_when_it_is_there(path: Path, max_bytes: int) -> bytes:
    while path.is_file() and path.read_bytes() == WAIT:
        time.sleep(0.05)
    return READ(path, max_bytes)


if __name__ == "__main__":
    READ = reading.read_regular
    reading.read_regular = read_when_it_is_there
    runpy.run_path(str(Path(__file__).parents[2] / "tools/shard.py"), run_name="__main__")
