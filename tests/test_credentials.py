"""Credentials in URLs: refused wherever a path can be given, and in nothing that a run leaves."""

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run
from commands import ROOT, command
from remote_server import folder_over_http

from mres.config import Config, ConfigError, load_config
from mres.credentials import cleaned, redacted, refusal
from mres.errors import UserError
from mres.shards.reader import ShardSet

SECRET = "s3cr3tPW"
WITH = [
    f"s3://AKIA:{SECRET}/with+slashes@bucket/set",
    f"https://user:{SECRET}@host/set",
    f"https://user:{SECRET}@host:8080/set",
    f"https://user:p@{SECRET}@host/set",
    f"HTTPS://{SECRET}@host/set",
    f"gs://bucket/set?access_token={SECRET}",
    f"https://host/set?X-Amz-Credential={SECRET}&x=1&X-Amz-Signature={SECRET}",
    f"https://host/set?sv=2020&sig={SECRET}%2B&se=1",
    f"https://host/set#token={SECRET}",
    f"abfs://name:{SECRET}@account/set",
    f"simplecache::s3://key:{SECRET}@bucket/set",
    f"s3:/AKIA:{SECRET}@bucket/set",  # as a `pathlib.Path` has it
    f"https:/{SECRET}@host/set",
    f"https:/host/set?sig={SECRET}",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;EndpointSuffix=x",
    f"s3://AKIA:12/abcd{SECRET}@bucket/set",  # 12 is no port: a bucket has none
    f"https://user%3A{SECRET}%40host/set",
    f"//user:{SECRET}@host/set",
    f"user:{SECRET}@host:/set",
    f"HTTPS:\\\\user:{SECRET}@host\\set",
    *(
        f"https://host/set?page=1&{key}={SECRET}"
        for key in (
            "code", "jwt", "pw", "pass", "userpass", "bearer", "authkey", "sign", "hmac", "ticket", "session", "sessionid",
            "session_id", "pass_word", "a[token]", "%73ig", "a%5Btoken%5D", "X-Amz-Security-Token", "client_secret",
        )
    ),
    f"//host/set?sig={SECRET}",
    *(
        f"{before}/{token}/set"
        for before in ("https://host", "/data", "data")
        for token in (
            f"hf_{SECRET}{'aB3' * 9}", f"ghp_{SECRET}{'aB3' * 9}", f"github_pat_{SECRET}_{'aB3' * 9}",
            f"xoxb-123456-{SECRET}", f"sk-{SECRET}{'aB3' * 9}", f"sk-proj-{SECRET}-{'aB3' * 9}",
            f"AKIAIOSFODNN7EXAMPLE:{SECRET}{'aB3' * 9}",
        )
    ),
]  # fmt: skip
WITHOUT = [
    "s3://bucket/a:b@c/set",
    "http://host:8080/set@2x",
    "http://127.0.0.1:80",
    "abfss://container@account.dfs.core.windows.net/set",
    "ssh://git@host/set",
    "https://host/set?page=2&keyword=key",
    "file:///data/a@b",
    "/data/a:b@c/set",
    "data/?token=a",
    "nas:/user:me@2x/set",
    "http://host:12/set@2x/a%40b",
    "https://host/a%3Ab%40c/set",
    "s3://bucket/2024:12/a@b",
    "https://host/set?country_code=de&design=3&session_length=4&passage=1&monkey=2",
    "C:\\data\\me@home\\set",
    "C:/data/a:b@c",
    "//server/share/a:b@c",
    "a:b",
    "person: left@top",
    "git@host:/data/set",
    "v1.2.3+cu121:a@b",
    "/data/hf_internal_testing_dataset_of_small_images/sk-learn-like-folder-of-many-words",
    "/data/task-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/ghp_short/AKIA",
]


@pytest.mark.parametrize("url", WITH)
def test_they_are_found_in_any_form_and_taken_out_of_texts(url: str) -> None:
    assert SECRET not in redacted(f"cannot read '{url}' (403)")
    said = refusal(url)
    assert said is not None
    assert SECRET not in said
    assert "~/.aws/credentials" in said
    assert SECRET not in str(UserError(f"the store refuses '{url}'"))
    assert SECRET not in str(cleaned({"data": [{"folder": url}]}))


@pytest.mark.parametrize("url", WITHOUT)
def test_what_only_looks_alike_stays(url: str) -> None:
    assert refusal(url) is None
    assert redacted(f"cannot read '{url}'") == f"cannot read '{url}'"


@pytest.mark.parametrize("url", WITH)
def test_a_config_with_them_is_refused_by_key_and_place(url: str, tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data:\n  train: [a, {{path: '{url}', weight: 2}}]\n")
    given = [
        ((path, []), rf"data\.train\.2\.path: .*{re.escape(str(path))}"),
        ((None, [f"data.val='{url}'"]), r"data\.val: .*command line"),
        ((None, [f"checkpoint.init_from='{url}'"]), "checkpoint.init_from"),
        ((None, [f"data.kind_weights={{'{url}': 1}}"]), "data.kind_weights"),
        ((None, [f"data.split='{url}'"]), "data.split"),
        ((None, [f"data.nonsense='{url}'"]), "data.nonsense"),
    ]
    for (file, overrides), words in given:
        with pytest.raises(ConfigError, match=words) as raised:
            load_config(file, overrides)
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize("url", WITH)
def test_a_set_with_them_is_not_opened(url: str) -> None:
    with pytest.raises(UserError, match="credentials") as raised:
        ShardSet(url)
    assert SECRET not in str(raised.value)


def test_of_a_config_that_a_run_has_saved_they_are_left_out(tmp_path) -> None:
    """Weights of a run that had them are still read, and what is made of them has them no more."""
    path = tmp_path / "config.yaml"
    path.write_text(f"data:\n  train: https://user:{SECRET}@host/set\n  val: folder\n")
    config = load_config(path, stored=True)
    assert config.data.train == "https://host/set"
    assert SECRET not in config.to_yaml()
    assert isinstance(config, Config)


@pytest.fixture
def store(tiny_shards: Path, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A set in a store that asks for a password; the environment in which it, and other secrets, are known."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    login = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
    environment = {
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "HF_TOKEN": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    with folder_over_http(tiny_shards.parent, login) as port:
        yield f"http://127.0.0.1:{port}/{tiny_shards.name}", environment | {"no_proxy": "127.0.0.1"}


@pytest.mark.slow
def test_nothing_that_a_run_leaves_or_says_has_a_secret(
    config: Path, store: tuple[str, dict[str, str]], tiny_shards: Path, tmp_path: Path
) -> None:
    url, environment = store
    folder, run = tmp_path / "work", tmp_path / "work" / "runs" / "remote"
    said = []

    def do(script: Path, *arguments: str, code: int = 0) -> str:
        done = tiny_run.run(script, list(arguments), folder, environ=environment)
        assert done.codes == [code], done.output
        said.append(done.output)
        return done.output

    chosen = ["--config", str(config), "run.name=remote", f"data.cache_dir={tmp_path / 'cache'}"]
    do(tiny_run.TRAIN, *chosen, f"data.train={url}", "train.steps=2", "checkpoint.every=1")
    do(tiny_run.EVALUATE, *chosen, "--checkpoint", str(run))
    do(ROOT / "tools" / "report.py", str(run), "--data", url)
    do(ROOT / "tools" / "export.py", str(run), str(folder / "exported"))
    do(ROOT / "tools" / "convert.py", str(run), str(folder / "converted"), "--to", "safetensors")
    with_secret = url.replace("http://", f"http://user:{SECRET}@")
    assert "data.train" in do(tiny_run.TRAIN, *chosen, f"data.train={with_secret}", code=2)
    for words in (
        ["tools/doctor.py", *chosen],
        ["tools/doctor.py", "--json", *chosen],
        ["mres.config", str(config), *chosen[2:]],
        ["launch/train.py", "--dry-run", *chosen],
        ["launch/submit.py", "--dry-run", "--tasks-per-node=1", "--time=10", *chosen],
    ):
        for given, codes in ((url, (0, 1)), (with_secret, (2,))):
            done = command(*words, f"data.train={given}", folder=folder, environ={**os.environ, **environment})
            assert done.returncode in codes, (words, done.stdout, done.stderr)
            said.append(done.stdout + done.stderr)
    said.append(command("tools/doctor.py", run, environ={**os.environ, **environment}).stdout)
    Path(environment["NETRC"]).write_text(f"machine 127.0.0.1 login user password {SECRET}wrong\n")
    shutil.rmtree(tmp_path / "cache")
    assert "netrc" in do(tiny_run.TRAIN, *chosen, f"data.train={url}", "run.name=other", code=2)

    assert (run / "environment.json").read_text().count(url) == 1
    encoded = base64.b64encode(f"user:{SECRET}".encode())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert encoded not in content, path
    assert SECRET not in "".join(said)
