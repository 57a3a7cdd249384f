"""Credentials in URLs: refused wherever a path can be given, and in nothing that a run leaves."""

import re

import pytest

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
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;EndpointSuffix=x",
]
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
