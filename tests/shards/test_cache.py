"""The cache on real disks, shared by real processes, some of which are killed."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import remote_server
from commands import PATIENCE_S
from hypothesis import given
from hypothesis import strategies as st
from remote_server import exit_code, in_fork

from mres.errors import UserError
from mres.io.locks import locked
from mres.shards.cache import BlockCache
from mres.shards.storage import Block

URL = "s3://bucket/set/shard-000000.tar"
SIZE = 1000
BLOCKS = [(SIZE * number, SIZE * (number + 1)) for number in range(30)]


def content_of(block: Block) -> bytes:
    return random.Random(str(block)).randbytes(block[1] - block[0])


def fetch(cache: BlockCache, block: Block) -> bytes:
    return cache.fetch(URL, block, lambda: content_of(block))


def not_again() -> bytes:
    raise AssertionError("it is in the cache")


def cached(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*/*.block")}


def test_blocks_are_read_in_pieces_from_disk(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 3 * SIZE)
    assert cache.read(URL, BLOCKS[1], 0, 10) is None
    assert fetch(cache, BLOCKS[1]) == content_of(BLOCKS[1])
    assert BlockCache(tmp_path, 3 * SIZE).read(URL, BLOCKS[1], 100, 50) == content_of(BLOCKS[1])[100:150]
    assert cache.fetch(URL, BLOCKS[1], not_again) == content_of(BLOCKS[1])
    assert cached(tmp_path) == {"1000-2000.block": SIZE}


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * SIZE)
    for block in BLOCKS[:12]:
        fetch(cache, block)
    assert set(cached(tmp_path)) == {f"{start}-{end}.block" for start, end in BLOCKS[2:12]}


def test_a_lower_limit_holds_from_the_start(tmp_path: Path) -> None:
    for block in BLOCKS[:10]:
        fetch(BlockCache(tmp_path, 10 * SIZE), block)
    BlockCache(tmp_path, 3 * SIZE)
    assert len(cached(tmp_path)) == 3


@given(ends=st.lists(st.integers(1, 900), max_size=25), limit=st.integers(900, 3000))
def test_no_order_of_sizes_breaks_the_limit(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(folder, limit)
    for end in ends:
        assert fetch(cache, (0, end)) == content_of((0, end))
        assert sum(cached(folder).values()) <= limit
        assert f"0-{end}.block" in cached(folder)


def test_foreign_files_stay(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 2 * SIZE)
    fetch(cache, BLOCKS[0])
    (folder,) = (path.parent for path in tmp_path.glob("*/*.block"))
    (tmp_path / "beside").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "beside")
    (tmp_path / ("a" * 64)).symlink_to(tmp_path / "beside")
    names = ["shard-000000.tar", "manifest.json", "0-10.block", "beside/0-10.block", f"{folder.name}/shard-000000.tar"]
    names += [f"{folder.name}/0-10.block.bak", f"{folder.name}/x-10.block"]
    for name in names:
        (tmp_path / name).write_bytes(b"the only copy" * 1000)
    for block in BLOCKS:
        fetch(cache, block)
    cache.drop(URL, BLOCKS[0])
    BlockCache(tmp_path, 0)
    assert cached(tmp_path).keys() - {Path(name).name for name in names} == set()
    assert all((tmp_path / name).read_bytes() == b"the only copy" * 1000 for name in names)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("text", [b"", b"rubbish", b"%020d\n" % 0, b"%020d\n" % 10**15])
def test_a_ledger_that_is_wrong_is_put_right(text: bytes, tmp_path: Path) -> None:
    for block in BLOCKS[:3]:
        fetch(BlockCache(tmp_path, 3 * SIZE), block)
    (tmp_path / ".mres-cache" / "ledger").write_bytes(text)
    cache = BlockCache(tmp_path, 3 * SIZE)
    fetch(cache, BLOCKS[3])
    assert len(cached(tmp_path)) == 3
    assert int((tmp_path / ".mres-cache" / "ledger").read_text()) == 3 * SIZE


def test_a_cache_that_is_removed_while_in_use_begins_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 3 * SIZE)
    fetch(cache, BLOCKS[0])
    shutil.rmtree(tmp_path / "cache")
    assert fetch(cache, BLOCKS[0]) == content_of(BLOCKS[0])
    assert len(cached(tmp_path / "cache")) == 1


def test_a_block_of_another_length_is_none(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 3 * SIZE)
    fetch(cache, BLOCKS[0])
    (path,) = tmp_path.glob("*/*.block")
    path.write_bytes(b"torn")
    assert cache.read(URL, BLOCKS[0], 0, 4) is None
    assert fetch(cache, BLOCKS[0]) == content_of(BLOCKS[0])
    assert path.stat().st_size == SIZE


def test_dropped_blocks_are_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 3 * SIZE)
    fetch(cache, BLOCKS[0])
    cache.drop(URL, BLOCKS[0])
    cache.drop(URL, BLOCKS[0])
    assert cache.read(URL, BLOCKS[0], 0, 1) is None
    assert int((tmp_path / ".mres-cache" / "ledger").read_text()) == 0


def test_capacity(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 5 * SIZE)
    cache.check_capacity(SIZE, 4)
    with pytest.raises(
        UserError, match=r"limit of 5000 bytes, but 5 blocks of up to 1000 .* at least 0.01 GB .6000 bytes."
    ):
        cache.check_capacity(SIZE, 5)
    with pytest.raises(UserError, match=r"has 5001 bytes and the cache .* a limit of 5000; raise the limit"):
        cache.fetch(URL, (0, 5001), not_again)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file/cache' cannot be used: Not a directory; give one of your own"):
        BlockCache(tmp_path / "file" / "cache", SIZE)


def open_without_rights(folder: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    with pytest.raises(UserError, match="cannot be used: Permission denied; give one of your own"):
        BlockCache(folder, SIZE)


@pytest.mark.parametrize("existed", [False, True])
def test_an_unwritable_folder_is_refused(existed: bool) -> None:
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # pytest's are closed to others
    try:
        if existed:
            BlockCache(folder, SIZE)
        if os.getuid() == 0:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, 65534, 65534)
        folder.chmod(0o555)
        assert exit_code(in_fork(open_without_rights, folder)) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def fetch_with_file_limit(folder: Path) -> None:
    cache, downloads = BlockCache(folder, 10 * SIZE), Counter()

    def download(block: Block) -> bytes:
        downloads[block] += 1
        return content_of(block)

    fetch(cache, BLOCKS[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))  # a disk without room, without its owner's help
    for block in BLOCKS[1:4] * 2:
        if cache.read(URL, block, 0, SIZE) is None:
            assert cache.fetch(URL, block, lambda block=block: download(block)) == content_of(block)
        assert cache.read(URL, block, 10, 10) == content_of(block)[10:20]
    assert set(downloads.values()) == {1}


def test_without_room_blocks_stay_in_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code(in_fork(fetch_with_file_limit, tmp_path)) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"no room for the cache in '{tmp_path}'" in warnings[0]
    assert not (tmp_path / ".mres-cache" / "incoming").exists()


FULL_DISK = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(os.pathsep)
from test_cache import BLOCKS, BlockCache, URL, cached
folder, size = Path(sys.argv[1]), 100_000
cache = BlockCache(folder, 100 * size)
for number in range(30):
    block = (number * size, number * size + size)
    assert cache.fetch(URL, block, lambda: bytes([number]) * size) == bytes([number]) * size
    assert cache.read(URL, block, 5, 5) == bytes([number]) * 5
    assert f"{block[0]}-{block[1]}.block" in cached(folder)
"""


def test_a_full_disk_makes_room_for_new_blocks(tmp_path: Path) -> None:
    """On a file system of 1 MiB, far less than the limit."""
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path),
        sys.executable,
        FULL_DISK,
        os.pathsep.join(map(os.path.dirname, (__file__, remote_server.__file__))),
    ]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no user namespaces, so no small file system can be mounted")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")


def count_fetches(folder: Path, limit: int, order: list[Block], log: Path) -> None:
    cache = BlockCache(folder, limit)

    def download(block: Block) -> bytes:
        with log.open("a") as file:
            file.write(f"{block[0]}\n")
        time.sleep(0.01)
        return content_of(block)

    for block in order:
        assert cache.fetch(URL, block, lambda block=block: download(block)) == content_of(block)


def test_processes_and_threads_fetch_a_block_once(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    pids = [in_fork(count_fetches, folder, len(BLOCKS) * SIZE, BLOCKS, log) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(count_fetches, folder, len(BLOCKS) * SIZE, BLOCKS, log) for _ in range(3)]:
            done.result()
    assert [exit_code(pid) for pid in pids] == [0] * 3
    assert sorted(map(int, log.read_text().split())) == [start for start, _ in BLOCKS]


def test_processes_keep_to_the_limit_together(tmp_path: Path) -> None:
    log, folder, limit = tmp_path / "log", tmp_path / "cache", 5 * SIZE + 1
    orders = [random.Random(number).sample(BLOCKS * 2, 2 * len(BLOCKS)) for number in range(4)]
    pids = [in_fork(count_fetches, folder, limit, order, log) for order in orders]
    codes, largest = dict.fromkeys(pids), 0
    while None in codes.values():
        with locked(folder / ".mres-cache" / "ledger"):  # a sum over files that come and go would be none
            largest = max(largest, sum(cached(folder).values()))
        for pid in [pid for pid, code in codes.items() if code is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    assert set(codes.values()) == {0}
    assert 3 * SIZE <= largest <= limit


def hold(cache: BlockCache, block: Block, ready: int) -> None:
    def download() -> bytes:
        os.write(ready, b"!")
        time.sleep(1000)
        return b""

    cache.fetch(URL, block, download)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL


def test_who_is_killed_while_fetching_blocks_nobody(tmp_path: Path) -> None:
    cache, (reader, writer) = BlockCache(tmp_path, 3 * SIZE), os.pipe()
    pid = in_fork(hold, cache, BLOCKS[0], writer)
    os.read(reader, 1)
    waiting = in_fork(fetch, cache, BLOCKS[0])
    kill(pid)
    assert exit_code(waiting) == 0
    assert cache.fetch(URL, BLOCKS[0], not_again) == content_of(BLOCKS[0])


def test_a_fork_does_not_keep_the_locks_of_its_parent(tmp_path: Path) -> None:
    """A process that holds a lock in a thread forks, and is killed while its child lives on."""

    def hold_and_fork(ready: int) -> None:
        (held_reader, held_writer) = os.pipe()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(hold, BlockCache(tmp_path, 3 * SIZE), BLOCKS[0], held_writer)
            os.read(held_reader, 1)
            child = in_fork(time.sleep, 1000)
            os.write(ready, b"%d\n" % child)
            time.sleep(1000)

    reader, writer = os.pipe()
    pid = in_fork(hold_and_fork, writer)
    child = int(os.read(reader, 32))
    kill(pid)
    try:
        waiting = in_fork(fetch, BlockCache(tmp_path, 3 * SIZE), BLOCKS[0])
        assert exit_code(waiting) == 0
    finally:
        os.kill(child, signal.SIGKILL)


def fetch_forever(folder: Path, limit: int, seed: int) -> None:
    cache, draws = BlockCache(folder, limit), random.Random(seed)
    while True:
        block = draws.choice(BLOCKS)
        assert fetch(cache, block) == content_of(block)


def test_killed_at_any_moment_it_leaves_a_cache(tmp_path: Path) -> None:
    limit, draws = 5 * SIZE, random.Random(0)
    for round_ in range(25):
        pids = [in_fork(fetch_forever, tmp_path, limit, 2 * round_ + number) for number in range(2)]
        time.sleep(draws.uniform(0.005, 0.06))
        for pid in pids:
            kill(pid)
        leftover = tmp_path / ".mres-cache" / "incoming"
        assert sum(cached(tmp_path).values()) + (leftover.stat().st_size if leftover.exists() else 0) <= limit
        assert set(cached(tmp_path).values()) <= {SIZE}
    cache = BlockCache(tmp_path, limit)
    for block in BLOCKS:
        assert fetch(cache, block) == content_of(block)
    assert int((tmp_path / ".mres-cache" / "ledger").read_text()) == sum(cached(tmp_path).values()) <= limit
    assert not leftover.exists()


@pytest.mark.parametrize("failure", [UserError, FileNotFoundError])
def test_what_goes_wrong_in_fetching_is_handed_on(failure: Callable[[str], Exception], tmp_path: Path) -> None:
    def download() -> bytes:
        raise failure("why")

    cache = BlockCache(tmp_path, SIZE)
    with pytest.raises(failure, match="why"):
        cache.fetch(URL, BLOCKS[0], download)
    assert fetch(cache, BLOCKS[0]) == content_of(BLOCKS[0])


def _block_file(folder: Path) -> Path:
    return BlockCache(folder, 3 * SIZE)._path(URL, BLOCKS[0])


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "link to a folder"])
def test_what_is_no_file_of_the_cache_is_not_read(what: str, tmp_path: Path) -> None:
    """Nor waited for: a pipe would never answer."""
    forged, cache = tmp_path / "forged", BlockCache(tmp_path / "cache", 3 * SIZE)
    path = _block_file(tmp_path / "cache")
    if what == "link to a folder":
        forged.mkdir()
        (forged / path.name).write_bytes(bytes(SIZE))
        path.parent.symlink_to(forged)
    else:
        path.parent.mkdir()
        forged.write_bytes(bytes(SIZE))
        {"link": lambda: path.symlink_to(forged), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[what]()
    assert cache.read(URL, BLOCKS[0], 0, 10) is None
    if "folder" in what:
        with pytest.raises((UserError, OSError), match=r"link, or of another user|directory"):
            fetch(cache, BLOCKS[0])
    else:
        assert fetch(cache, BLOCKS[0]) == content_of(BLOCKS[0])
        assert cache.read(URL, BLOCKS[0], 0, 10) == content_of(BLOCKS[0])[:10]
        assert not path.is_symlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["the cache", "its ledger", "a set", "a block"])
def test_what_belongs_to_another_user_is_refused(whose: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fetch(BlockCache(folder, 3 * SIZE), BLOCKS[0])
    path = _block_file(folder)
    theirs = {"the cache": folder, "its ledger": folder / ".mres-cache", "a set": path.parent, "a block": path}[whose]
    os.chown(theirs, 65534, 65534)
    if whose in ("the cache", "its ledger"):
        with pytest.raises(UserError, match=r"65534|another user"):
            BlockCache(folder, 3 * SIZE)
        return
    assert BlockCache(folder, 3 * SIZE).read(URL, BLOCKS[0], 0, 10) is None


def test_its_folders_are_open_to_their_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "cache"
    (tmp_path / "above").mkdir()
    fetch(BlockCache(folder, 3 * SIZE), BLOCKS[0])
    for path in (folder, folder / ".mres-cache", _block_file(folder).parent):
        assert path.stat().st_mode & 0o777 == 0o700
    (folder / ".mres-cache").chmod(0o777)  # as an earlier version made it
    BlockCache(folder, 3 * SIZE)
    assert (folder / ".mres-cache").stat().st_mode & 0o777 == 0o700
