"""Real runs on a set in an S3 store that fails: the same batches as from a folder, or one message, soon, on every rank."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from remote_server import Proxy, moto_server, proxied, s3_environment, upload
from tiny_data import make_record
from tiny_run import TRAIN, Done, lines, outputs, run, start, tiny_config, wait

from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource

NUM_IMAGES, PER_SHARD, STEPS = 22, 2, 14  # 11 shards, each of one block; 6 steps an epoch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "set"
    records = [make_record(i) for i in range(NUM_IMAGES)]
    write_shards(RecordSource.of(records, {"format": "tiny"}), folder, WriteOptions(PER_SHARD))
    return folder


@pytest.fixture(scope="module")
def moto_port(folder: Path) -> Iterator[int]:
    with moto_server() as port:
        upload(port, folder, "set")
        yield port


@pytest.fixture
def proxy(moto_port: int) -> Iterator[Proxy]:
    with proxied(moto_port) as proxy:
        yield proxy


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(folder: Path) -> Path:
    value = tiny_config(Path("unused"))
    value["data"] |= {
        "train": "s3://bucket/set",
        "val": None,
        "shuffle_window": 3,
        "cache_dir": str(folder / "cache"),
    }
    value["train"]["steps"] = STEPS
    value["parallel"]["strategy"] = "ddp"
    path = folder / "remote.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def environment(proxy: Proxy) -> dict[str, str]:
    return {**s3_environment(proxy.url), "AWS_ENDPOINT_URL": proxy.url, "no_proxy": "127.0.0.1"}


def train(config: Path, proxy: Proxy, *overrides: str, world_size: int = 2) -> Done:
    arguments = ["--config", str(config), *overrides]
    return run(TRAIN, arguments, config.parent, world_size=world_size, environ=environment(proxy))


def the_error(done: Done) -> str:
    """The one message of a run that ended on every rank with exit code 2 and no traceback."""
    everything = "".join(done.outputs)
    assert "Traceback" not in everything, everything
    assert done.codes == [2] * len(done.codes), done.outputs
    (error,) = [line for line in everything.splitlines() if "error: " in line]
    return error


def cached_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.block"))


@pytest.fixture(scope="module")
def smallest_cache(moto_port: int, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes that the refusal of a cache that is far too small asks for."""
    folder = tmp_path_factory.mktemp("refused")
    with proxied(moto_port) as proxy:
        error = the_error(train(write_config(folder), proxy, "data.cache_limit_gb=0.000001"))
    assert "has a limit of 1000 bytes" in error
    assert "raise the limit (data.cache_limit_gb) to at least" in error
    assert not (folder / "runs").exists(), "before the run begins"
    found = re.search(r"\((\d+) bytes\)", error)
    assert found is not None
    return int(found[1])


def limited(smallest_cache: int) -> str:
    return f"data.cache_limit_gb={(smallest_cache + 1) / 1e9}"  # + 1: a product of floats may be just below


def test_a_store_that_fails_now_and_then_changes_no_batch(
    folder: Path, config: Path, proxy: Proxy, smallest_cache: int
) -> None:
    here = run(TRAIN, ["--config", str(config), f"data.train={folder}", "run.name=here"], config.parent, world_size=2)
    assert here.codes == [0, 0], here.output
    assert smallest_cache < sum(path.stat().st_size for path in folder.glob("*.tar")), "blocks come and go"
    proxy.fail(500, path=".tar", times=3)
    proxy.fail("truncate", path=".tar", times=3)
    proxy.fail("short", path=".tar", times=2)
    proxy.log.clear()
    there = train(config, proxy, "run.name=there", "data.workers=2", limited(smallest_cache),
                  "data.remote_retries=9")  # fmt: skip
    assert there.codes == [0, 0], there.output
    assert all(fault.left == 0 for fault in proxy.faults)
    assert len(proxy.ranges(".tar")) > NUM_IMAGES // PER_SHARD, "evicted blocks are fetched again"
    assert 0 < cached_bytes(config.parent / "cache") <= smallest_cache + 1
    one, other = (config.parent / "runs" / name / "batches.jsonl" for name in ("here", "there"))
    assert one.read_bytes() == other.read_bytes()
    assert not (config.parent / "runs" / "there" / "quarantine.jsonl").exists(), "a store's failure is no image's"


@pytest.mark.parametrize(
    ("fault", "overrides", "message"),
    [
        (403, (), "the store refuses access to 's3://bucket/set/manifest.json': HTTP 403 "),
        pytest.param(
            500,
            ("data.remote_retries=2",),
            "set/manifest.json': 3 attempts failed, the last with: HTTP 500",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "stall",
            ("data.remote_timeout_s=0.5", "data.remote_retries=0"),
            "set/manifest.json': 1 attempt failed, the last with: no answer within 0.5 s",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            404, (), "no shard set at 's3://bucket/set': it has no manifest.json", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_a_store_that_refuses_ends_the_run_before_it_begins(
    fault: int | str, overrides: tuple[str, ...], message: str, config: Path, proxy: Proxy
) -> None:
    proxy.fail(fault)
    assert message in the_error(train(config, proxy, *overrides))
    assert not (config.parent / "runs").exists()


def refuse_one_file(proxy: Proxy) -> None:
    """Which one rank happens to need first, while the other waits for it."""
    proxy.fail(403, path="shard-000007.tar")


def go_away(proxy: Proxy) -> None:
    proxy.fail("reset")


def fall_silent(proxy: Proxy) -> None:
    proxy.fail("stall")


@pytest.mark.parametrize(
    ("fault", "workers", "message"),
    [
        pytest.param(
            refuse_one_file,
            0,
            "the store refuses access to 's3://bucket/set/shard-000007.tar': HTTP 403 ",
            marks=pytest.mark.exhaustive,
        ),
        (refuse_one_file, 1, "the store refuses access to 's3://bucket/set/shard-000007.tar': HTTP 403 "),
        pytest.param(go_away, 1, ": 2 attempts failed, the last with: ", marks=pytest.mark.exhaustive),
        pytest.param(
            fall_silent,
            1,
            ": 2 attempts failed, the last with: no answer within 2 s",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_store_that_is_lost_ends_the_run_within_its_budget(
    fault: Callable[[Proxy], None], workers: int, message: str, config: Path, proxy: Proxy, smallest_cache: int
) -> None:
    options = ["train.steps=100000", f"data.workers={workers}", limited(smallest_cache),
               "data.remote_timeout_s=2", "data.remote_retries=1", "checkpoint.every=3"]  # fmt: skip
    arguments = ["--config", str(config), *options]
    processes = start(TRAIN, arguments, config.parent, world_size=2, environ=environment(proxy))
    metrics = config.parent / "runs/run/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 7:
        assert processes[0].is_alive(), outputs(config.parent, 2)
        time.sleep(0.05)
    fault(proxy)
    done = wait(processes, config.parent)  # not for `parallel.timeout_s`, ten minutes
    assert message in the_error(done)
    assert lines(metrics)[-1]["step"] >= 7
    assert list((config.parent / "runs/run/checkpoints").glob("step-*")), "the run can go on from its checkpoint"


def test_a_cache_that_cannot_be_written_is_refused(config: Path, proxy: Proxy) -> None:
    (config.parent / "file").write_text("")
    error = the_error(train(config, proxy, f"data.cache_dir={config.parent}/file/cache", world_size=1))
    assert f"the cache folder '{config.parent}/file/cache' cannot be used: " in error
