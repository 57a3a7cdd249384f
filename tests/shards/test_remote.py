"""Remote storages against real servers that fail in every way."""

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from commands import PATIENCE_S
from remote_server import (
    Proxy,
    exit_code,
    folder_as_gcs,
    folder_over_http,
    in_fork,
    moto_server,
    proxied,
    s3_environment,
    upload,
    use_s3,
)

from mres.errors import UserError
from mres.records import RecordError
from mres.shards import driver
from mres.shards.manifest import make_manifest
from mres.shards.reader import ShardSet
from mres.shards.remote import RemoteOptions, RemoteStorage
from mres.shards.verify import damages

SIZE, BLOCK = 40_000, 10_000
SHARD = np.random.default_rng(0).bytes(SIZE)
BLOCKS = [(start, start + BLOCK) for start in range(0, SIZE, BLOCK)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "set"
    folder.mkdir()
    (folder / "shard.tar").write_bytes(SHARD)
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def s3(moto_port: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Proxy]]:
    url = upload(moto_port, folder, "set")
    with proxied(moto_port) as proxy:
        use_s3(monkeypatch, proxy.url)
        yield url, proxy


@pytest.fixture
def web(folder: Path) -> Iterator[tuple[str, Proxy]]:
    with folder_over_http(folder.parent) as port, proxied(port) as proxy:
        yield f"{proxy.url}/set", proxy


@pytest.fixture(params=["s3", "web"])
def store(request: pytest.FixtureRequest) -> tuple[str, Proxy]:
    """A set's URL and what stands before its server."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def options(tmp_path: Path) -> RemoteOptions:
    return RemoteOptions(tmp_path / "cache", 10 * BLOCK, timeout_s=20, retries=3)


def location_of(scheme: str, request: pytest.FixtureRequest) -> str:
    if scheme in ("s3", "gcs", "web"):
        return request.getfixturevalue(scheme)[0]
    folder = request.getfixturevalue("folder")
    if scheme == "memory":
        for path in folder.iterdir():
            fsspec.filesystem("memory").pipe_file(f"/set/{path.name}", path.read_bytes())
        return "memory://set"
    return f"file://{folder}"


@pytest.fixture
def gcs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    with folder_as_gcs(folder.parent) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield "gs://bucket/set", server


@pytest.mark.parametrize("status", [401, 403])
def test_google_refuses(
    status: int, gcs: tuple[str, ThreadingHTTPServer], options: RemoteOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    gcs[1].status = status
    with pytest.raises(
        UserError, match=r"refuses access to 'gs://bucket/set/manifest.json': .*GOOGLE_APPLICATION_CRED"
    ):
        RemoteStorage(gcs[0], options).read("manifest.json")
    assert len(gcs[1].asked) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("scheme", ["s3", "gcs", "web", "file", "memory"])
def test_every_scheme_reads_the_same(scheme: str, request: pytest.FixtureRequest, options: RemoteOptions) -> None:
    storage = RemoteStorage(location_of(scheme, request), options)
    assert storage.read("manifest.json") == b"{}"
    assert storage.size("shard.tar") == SIZE
    assert storage.read_range("shard.tar", 10_500, 100, BLOCKS[1]) == SHARD[10_500:10_600]
    assert storage.read_range("shard.tar", 19_000, 1000, BLOCKS[1]) == SHARD[19_000:20_000]
    assert (storage.blocks_fetched, storage.bytes_fetched, storage.cache_hits) == (1, BLOCK + 2, 1)
    assert storage.read_range("shard.tar", 39_990, 100) == SHARD[-10:]
    assert storage.read_range("shard.tar", SIZE, 5) == b""
    assert storage.read_range("shard.tar", 35_000, 90_000, (35_000, 125_000)) == SHARD[35_000:]
    for attempt in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1, (0, 1))):
        with pytest.raises(FileNotFoundError, match="no such file"):
            attempt("other.tar")
    assert storage.retries == 0


@pytest.mark.parametrize("kind", [500, 503, 429, 400, "truncate", "short", "close", "reset"])
def test_what_passes_is_tried_again(kind: int | str, store: tuple[str, Proxy], options: RemoteOptions) -> None:
    storage = RemoteStorage(store[0], options)
    storage.size("shard.tar")
    store[1].fail(kind, path="shard.tar", times=2)
    assert storage.read_range("shard.tar", 5, 10, BLOCKS[0]) == SHARD[5:15]
    assert 1 <= storage.retries <= 2, "aiohttp itself tries again once where a used connection was closed"
    assert storage.blocks_fetched == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        ("short", "the body ended after 5000 of 10000 bytes"),
        ("truncate", "received 5000 of 10000 bytes"),
        ("close", "disconnected|closed"),
        ("reset", "reset|disconnected|not connect"),
    ],
)
def test_what_stays_is_said_with_attempts_and_reason(
    kind: int | str, reason: str, store: tuple[str, Proxy], options: RemoteOptions
) -> None:
    url, proxy = store
    storage = RemoteStorage(url, options)
    storage.size("shard.tar")
    proxy.fail(kind, path="shard.tar")
    with pytest.raises(UserError) as error:
        storage.read_range("shard.tar", 5, 10, BLOCKS[0])
    message = str(error.value)
    assert message.startswith(f"cannot fetch bytes 0 to 9999 of '{url}/shard.tar': 4 attempts failed, the last with: ")
    assert any(text in message.lower() for text in reason.lower().split("|")), message
    assert "check the network and the store" in message
    assert storage.retries == 3
    if isinstance(kind, int):
        assert len(proxy.ranges()) == 4, "the driver must not try again by itself"
    assert not list(options.cache_dir.glob("*/*.block"))


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_said_at_once(status: int, store: tuple[str, Proxy], options: RemoteOptions) -> None:
    url, proxy = store
    proxy.fail(status)
    storage = RemoteStorage(url, options)
    with pytest.raises(UserError, match=f"refuses access to '{url}/manifest.json': HTTP {status} ") as error:
        storage.read("manifest.json")
    assert ("AWS_ACCESS_KEY_ID" if url.startswith("s3") else "netrc") in str(error.value)
    assert (storage.retries, len(proxy.log)) == (0, 1)


def test_a_missing_file_is_no_failure(store: tuple[str, Proxy], options: RemoteOptions) -> None:
    store[1].fail(404)
    storage = RemoteStorage(store[0], options)
    with pytest.raises(FileNotFoundError):
        storage.read("manifest.json")
    assert storage.retries == 0


def test_a_stall_ends_with_the_time_out(store: tuple[str, Proxy], tmp_path: Path) -> None:
    storage = _connected(store[0], RemoteOptions(tmp_path, BLOCK, timeout_s=2, retries=1))
    store[1].fail("stall", times=2)  # until the test has ended
    with pytest.raises(UserError, match=r"2 attempts failed, the last with: no answer within 2 s"):
        storage.read("manifest.json")
    assert storage.read("manifest.json") == b"{}", "connections that stalled are not used again"


def test_a_body_that_never_ends_is_given_up_and_left(store: tuple[str, Proxy], tmp_path: Path) -> None:
    storage = _connected(store[0], RemoteOptions(tmp_path, BLOCK, timeout_s=2, retries=0))
    store[1].fail("trickle")
    with pytest.raises(UserError, match=r"1 attempt failed, the last with: no answer within 2 s"):
        storage.read("manifest.json")
    assert store[1].left.wait(60), "the connection is closed"


def _connected(url: str, options: RemoteOptions) -> RemoteStorage:
    """A storage whose driver is there already: on a busy machine making it may take longer than the test's time-out,
    and what is to fail would never be asked for."""
    storage = RemoteStorage(url, options)
    for _ in range(20):
        with suppress(UserError):
            storage.read("manifest.json")
            return storage
    pytest.fail("the store does not answer")


def test_a_driver_that_blocks_is_left_behind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")  # opening it waits for somebody who writes
    storage = RemoteStorage(f"file://{tmp_path}", RemoteOptions(tmp_path / "cache", BLOCK, timeout_s=0.2, retries=1))
    with pytest.raises(UserError, match=r"2 attempts failed, the last with: no answer within 0\.2 s"):
        storage.read("manifest.json")


def test_a_server_without_ranges_is_named(store: tuple[str, Proxy], options: RemoteOptions) -> None:
    store[1].fail("whole")
    with pytest.raises(UserError, match="sent 40000 bytes where 10000 were asked for: it answers no range requests"):
        RemoteStorage(store[0], options).read_range("shard.tar", 0, 10, BLOCKS[0])


def test_no_server(options: RemoteOptions) -> None:
    with pytest.raises(UserError, match=r"4 attempts failed, the last with: .*Connect call failed"):
        RemoteStorage("http://127.0.0.1:9/set", options).size("manifest.json")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("abfs://container/set", r"nothing is installed that reads 'abfs://container/set' \(.*adlfs.*\[remote\]"),
        ("nonsense://x/set", "fsspec knows no 'nonsense://'"),
    ],
)
def test_missing_drivers(location: str, message: str, options: RemoteOptions) -> None:
    with pytest.raises(UserError, match=message):
        RemoteStorage(location, options).read("manifest.json")


READ = (
    "import sys; from pathlib import Path; from mres.shards.remote import RemoteOptions, RemoteStorage\n"
    "print(RemoteStorage(sys.argv[1], RemoteOptions(Path(sys.argv[2]))).read('manifest.json'))"
)


@pytest.mark.parametrize("has_credentials", [True, False])
def test_the_environment_says_where_and_who(has_credentials: bool, s3: tuple[str, Proxy], tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    given |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", **s3_environment(s3[1].url)}
    if not has_credentials:
        del given["AWS_ACCESS_KEY_ID"]
    command = [sys.executable, "-c", READ, s3[0], str(tmp_path)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=PATIENCE_S)
    if has_credentials:
        assert done.stdout == "b'{}'\n", done.stderr
    else:
        assert "refuses access to 's3://bucket/set/manifest.json'" in done.stderr.splitlines()[-1]
        assert "redentials" in done.stderr.splitlines()[-1]


def test_prefetched_blocks_come_at_once_and_only_once(store: tuple[str, Proxy], options: RemoteOptions) -> None:
    url, proxy = store
    storage = RemoteStorage(url, options)
    storage.size("shard.tar")
    proxy.wait_for(len(BLOCKS))  # one after the other would never get an answer
    storage.prefetch([("shard.tar", block) for block in BLOCKS])
    storage.prefetch([("shard.tar", block) for block in BLOCKS])
    for start, end in BLOCKS:
        assert storage.read_range("shard.tar", start, 10, (start, end)) == SHARD[start : start + 10]
    assert len(proxy.ranges()) == storage.blocks_fetched == len(BLOCKS)


def test_what_failed_in_advance_is_said_where_it_is_read(web: tuple[str, Proxy], options: RemoteOptions) -> None:
    storage = RemoteStorage(web[0], options)
    storage.size("shard.tar")
    web[1].fail(503, path="shard.tar")
    storage.prefetch([("shard.tar", BLOCKS[0])])
    while not web[1].ranges():
        time.sleep(0.001)
    with pytest.raises(UserError, match="HTTP 503"):
        storage.read_range("shard.tar", 0, 10, BLOCKS[0])
    assert len(web[1].ranges()) == 4, "the read must not begin all over"


def test_a_process_ends_in_spite_of_what_it_prefetches(web: tuple[str, Proxy], tmp_path: Path) -> None:
    web[1].fail("stall")
    code = READ.replace("print", "s =").replace("read('manifest.json')", "prefetch([('shard.tar', (0, 9))])")
    subprocess.run([sys.executable, "-c", code, web[0], str(tmp_path)], check=True, timeout=PATIENCE_S)


def test_damaged_bytes_are_fetched_again(web: tuple[str, Proxy], options: RemoteOptions) -> None:
    storage = RemoteStorage(web[0], options)
    storage.read_range("shard.tar", 0, 10, BLOCKS[0])
    (cached,) = options.cache_dir.glob("*/*.block")
    cached.write_bytes(bytes(BLOCK))
    assert storage.read_range("shard.tar", 0, 10, BLOCKS[0]) == bytes(10)
    assert storage.drop("shard.tar", BLOCKS[0])
    assert storage.read_range("shard.tar", 0, 10, BLOCKS[0]) == SHARD[:10]


def read_everything(storage: RemoteStorage) -> None:
    for start, end in BLOCKS:
        for at in range(start, end, 1000):
            assert storage.read_range("shard.tar", at, 1000, (start, end)) == SHARD[at : at + 1000]


def test_forks_share_the_cache_and_no_connection(store: tuple[str, Proxy], options: RemoteOptions) -> None:
    url, proxy = store
    storage = RemoteStorage(url, options)
    assert storage.read("manifest.json") == b"{}"  # its connection stays open
    pids = [in_fork(read_everything, storage) for _ in range(4)]
    read_everything(storage)
    assert [exit_code(pid) for pid in pids] == [0] * 4
    assert Counter(proxy.ranges()) == {f"bytes={start}-{end - 1}": 1 for start, end in BLOCKS}
    assert storage.read("manifest.json") == b"{}"


def read_with_prefetch(storage: RemoteStorage, seed: int) -> None:
    blocks = random.Random(seed).sample(BLOCKS * 3, 3 * len(BLOCKS))
    for block, following in zip(blocks, [*blocks[1:], blocks[0]], strict=True):
        storage.prefetch([("shard.tar", following)])
        assert storage.read_range("shard.tar", block[0] + 7, 9, block) == SHARD[block[0] + 7 :][:9]


def test_processes_share_a_small_cache(web: tuple[str, Proxy], tmp_path: Path) -> None:
    web[1].fail(503, path="shard.tar", times=5)
    storage = RemoteStorage(web[0], RemoteOptions(tmp_path, 2 * BLOCK + 1, timeout_s=20, retries=5))
    pids = [in_fork(read_with_prefetch, storage, seed) for seed in range(4)]
    assert [exit_code(pid) for pid in pids] == [0] * 4
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.block")) in (BLOCK, 2 * BLOCK)


def test_who_is_killed_while_the_store_stalls_leaves_nothing_behind(store: tuple[str, Proxy], tmp_path: Path) -> None:
    url, proxy = store
    storage = RemoteStorage(url, RemoteOptions(tmp_path, 10 * BLOCK, timeout_s=20, retries=0))
    storage.size("shard.tar")
    proxy.fail("stall", times=1)
    pid = in_fork(read_everything, storage)
    while not proxy.ranges():
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    read_everything(storage)
    assert proxy.ranges()[:2] == ["bytes=0-9999"] * 2


def test_spawned_workers(web: tuple[str, Proxy], options: RemoteOptions) -> None:
    storage = pickle.loads(pickle.dumps(RemoteStorage(web[0], options)))
    process = multiprocessing.get_context("spawn").Process(target=read_everything, args=(storage,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("layout", ["tar", "mds"])
def test_a_shard_set_in_a_store_is_that_of_the_folder(
    layout: str, moto_port: int, s3: tuple[str, Proxy], write_set, options: RemoteOptions, tmp_path: Path
) -> None:
    write_set(tmp_path / "set", layout=layout)
    here, there = ShardSet(tmp_path / "set"), ShardSet(upload(moto_port, tmp_path / "set", layout), options)
    assert [there.read(index) for index in range(len(there))] == [here.read(index) for index in range(len(here))]
    with pytest.raises(UserError, match="no shard set at 's3://bucket/none': it has no manifest"):
        ShardSet("s3://bucket/none", options)


def test_closed_storages_open_again(store: tuple[str, Proxy], options: RemoteOptions) -> None:
    storage = RemoteStorage(store[0], options)
    for _ in range(2):
        assert storage.read("manifest.json") == b"{}"
        storage.close()


@pytest.fixture
def served(shard_folder: Path, tmp_path: Path) -> Iterator[tuple[Path, str, RemoteOptions]]:
    """A set in three shards, its URL, and how to read it."""
    with folder_over_http(shard_folder.parent) as port:
        yield shard_folder, f"http://127.0.0.1:{port}/set", RemoteOptions(tmp_path / "cache", 10**7, retries=0)


def forge(content: bytes) -> bytes:
    """Other content with the same CRC-32: what a CRC cannot tell from what was written."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    difference = zlib.crc32(changed) ^ zlib.crc32(content)
    # CRCs are linear: which of 32 bits further on make up for the difference is a system of equations.
    zero, at = zlib.crc32(bytes(len(content))), len(content) // 2 + 8
    columns = []
    for bit in range(32):
        single = bytearray(len(content))
        single[at + bit // 8] = 1 << bit % 8
        columns.append([zlib.crc32(single) ^ zero, 1 << bit])
    basis: list[list[int]] = []
    for value, bits in columns:
        for other, theirs in basis:
            if value ^ other < value:
                value, bits = value ^ other, bits ^ theirs
        if value:
            basis.append([value, bits])
            basis.sort(reverse=True)
    chosen = 0
    for value, bits in basis:
        if difference ^ value < difference:
            difference, chosen = difference ^ value, chosen ^ bits
    for number, byte in enumerate(chosen.to_bytes(4, "little")):
        changed[at + number] ^= byte
    assert zlib.crc32(changed) == zlib.crc32(content)
    assert bytes(changed) != content
    return bytes(changed)


def _forge_record(path: Path, start: int, row: np.void) -> None:
    """Forges a record's image in a file in which it lies at `start`."""
    content = bytearray(path.read_bytes())
    span = slice(start, start + int(row["size"]))
    record = bytes(content[span])
    image = int(row["image_offset"])
    forged = (
        record[:image]
        + forge(record[image : image + int(row["image_size"])])
        + record[image + int(row["image_size"]) :]
    )
    assert zlib.crc32(forged) == row["crc32"]
    content[span] = forged
    path.write_bytes(content)


def test_a_poisoned_cache_does_not_get_through(served: tuple[Path, str, RemoteOptions]) -> None:
    folder, url, options = served
    shards, local = ShardSet(url, options), ShardSet(folder)
    assert shards.read(0) == local.read(0)
    row = local.index_N[1]
    (block,) = options.cache_dir.glob("*/*.block")
    _forge_record(block, int(row["offset"] - local.index_N[0]["offset"]), row)
    assert shards.read(1) == local.read(1), "it is fetched once more"
    assert shards.annotations(1) == local.annotations(1)


def test_a_store_cannot_forge_records(served: tuple[Path, str, RemoteOptions]) -> None:
    folder, url, options = served
    shards = ShardSet(url, options)
    row = shards.index_N[1]
    _forge_record(folder / "shard-000000.tar", int(row["offset"]), row)
    for read in (shards.read, shards.annotations):
        with pytest.raises(RecordError, match=r"shard-000000\.tar: 00000001: forged.*SHA-256"):
            read(1)
    assert ShardSet(folder).read(1), "a folder is the user's own: its CRC still fits"
    assert any("forged" in message for message in damages(str(folder)))


def test_digests_that_do_not_fit_are_refused(served: tuple[Path, str, RemoteOptions]) -> None:
    folder, url, options = served
    content = (folder / "digests.npy").read_bytes()
    (folder / "digests.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"digests\.npy' is not the index that its manifest describes"):
        ShardSet(url, options)
    ShardSet(folder)  # needs none of them
    assert any("digests.npy" in message for message in damages(str(folder)))


def test_a_set_of_an_earlier_version_is_read_with_a_warning(
    served: tuple[Path, str, RemoteOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url, options = served
    old = ShardSet(folder).manifest.model_copy(update={"digests": None})
    old = make_manifest(old.source, old.options, old.counts, old.index, old.shards)
    (folder / "manifest.json").write_bytes(old.to_bytes())
    (folder / "digests.npy").unlink()
    assert b"digests" not in old.to_bytes()
    assert ShardSet(url, options).read(2) == ShardSet(folder).read(2)
    assert "CRC alone" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_a_file_that_is_replaced_while_it_is_read_is_named(
    scheme: str, tmp_path: Path, options: RemoteOptions, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "replaced"
    folder.mkdir()
    (folder / "shard.tar").write_bytes(SHARD)
    with ExitStack() as stack:
        if scheme == "http":
            url = f"http://127.0.0.1:{stack.enter_context(folder_over_http(tmp_path))}/replaced"
        elif scheme == "gs":
            server = stack.enter_context(folder_as_gcs(tmp_path))
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
            monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
            url = "gs://bucket/replaced"
        else:
            port = request.getfixturevalue("moto_port")
            use_s3(monkeypatch, f"http://127.0.0.1:{port}")
            url = upload(port, folder, "replaced")
        storage = RemoteStorage(url, options)
        assert storage.read_range("shard.tar", 0, 10, BLOCKS[0]) == SHARD[:10]
        assert storage.read_range("shard.tar", 2 * BLOCK, 10, BLOCKS[2]) == SHARD[2 * BLOCK :][:10]
        (folder / "shard.tar").write_bytes(SHARD[::-1])
        if scheme == "s3":
            upload(port, folder, "replaced")
        with pytest.raises(UserError, match=r"shard\.tar' was replaced"):
            storage.read_range("shard.tar", BLOCK, 10, BLOCKS[1])
        assert storage.retries == 0
