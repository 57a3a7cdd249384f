"""A job's snapshot: which files are in it, of a checkout and without one, that it is whole or as it was, and what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mres.cluster import snapshot
from mres.cluster.snapshot import take
from mres.config import Config, load_config
from mres.errors import UserError
from mres.train.callback import callback_class

ROOT = Path(__file__).parents[2]
SOURCES = {
    "mres/__init__.py": "",
    "mres/model.py": "x = 1\n",
    "launch/train.py": "print('train')\n",
    "docs/old.md": "goes\n",
    ".gitignore": "*.log\n__pycache__/\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that mres would lie in, which is no checkout yet."""
    folder = tmp_path / "mres-folder"
    write(folder, SOURCES)
    monkeypatch.setattr(snapshot, "_ROOT", folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def checkout(root: Path) -> Path:
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def run_config(*overrides: str) -> Config:
    return load_config(None, ["run.name=r", *overrides])


def taken(config: Config, root: Path, limit_mib: int = 64) -> Path:
    take(config.run_dir, config, root / "launch", limit_mib)
    assert sorted(path.name for path in config.run_dir.iterdir()) == ["snapshot"]
    return config.run_dir / "snapshot"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_checkout_as_it_is_now(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)  # runs and data lie among the code, and git does not ignore them
    write(
        checkout,
        {
            "mres/model.py": "x = 2\n",
            "mres/new name.py": "y = 1\n",
            "big.log": "ignored",
            "runs/other/metrics.jsonl": "{}",
            "shards/a.tar": "data",
        },
    )
    (checkout / "docs" / "old.md").unlink()
    (checkout / "launch" / "train.py").chmod(0o755)
    folder = taken(run_config("data.train=shards"), checkout)
    assert files_below(folder) == {
        "config.yaml",
        "info.json",
        "code/.gitignore",
        "code/launch/train.py",
        "code/mres/__init__.py",
        "code/mres/model.py",
        "code/mres/new name.py",
    }
    assert (folder / "code" / "mres" / "model.py").read_text() == "x = 2\n"
    assert os.access(folder / "code" / "launch" / "train.py", os.X_OK)
    info = json.loads((folder / "info.json").read_text())
    assert info["git_sha"] == git(checkout, "rev-parse", "HEAD")
    assert {line[3:] for line in info["uncommitted"]} >= {"mres/model.py", "mres/new name.py", "docs/old.md"}


def test_without_a_checkout_it_is_the_package_and_the_scripts(root: Path) -> None:
    write(root, {"mres/__pycache__/model.pyc": "", "mres/report/templates/page.html": "<p>", "README.md": "no code"})
    folder = taken(run_config(), root)
    assert files_below(folder / "code") == {
        "launch/train.py",
        "mres/__init__.py",
        "mres/model.py",
        "mres/report/templates/page.html",
    }
    assert json.loads((folder / "info.json").read_text())["git_sha"] is None


def test_an_environment_within_a_checkout_is_not_that_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = checkout / "__pycache__" / "env"  # ignored, as .venv is
    write(inside, {"mres/__init__.py": "", "launch/train.py": ""})
    monkeypatch.setattr(snapshot, "_ROOT", inside)
    assert files_below(taken(run_config(), inside) / "code") == {"mres/__init__.py", "launch/train.py"}


def test_the_users_own_code_is_in_it_and_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    model = (ROOT / "docs" / "own_model.py").read_text()
    callback = "from mres.train.callback import Callback\nclass Mine(Callback): ...\n"
    write(
        own,
        {
            "my_model.py": model,
            "helper.py": "",
            "notes.txt": "",
            "my_package/__init__.py": "",
            "my_package/deep/back.py": callback,
            "my_back.py": callback,
        },
    )
    monkeypatch.syspath_prepend(own)
    (tmp_path / "ds.json").write_text("{}")
    config = run_config(
        "model.kind=own/my_model.py:SPEC",
        "train.callbacks=[own/my_back.py:Mine, my_package.deep.back:Mine, json:JSONDecoder]",
        "parallel.strategy=zero",
        "parallel.ds_config=ds.json",
        "data.train=some/shards",
    )
    folder = taken(config, root).absolute()
    assert files_below(folder / "own") == {
        "0/my_model.py",
        "0/helper.py",
        "0/my_back.py",
    }
    assert files_below(folder / "code" / "my_package") == {"__init__.py", "deep/back.py"}
    again = load_config(folder / "config.yaml")
    assert again.model.kind == f"{folder}/own/0/my_model.py:SPEC"
    assert again.train.callbacks == (f"{folder}/own/0/my_back.py:Mine", *config.train.callbacks[1:])
    assert again.parallel.ds_config == f"{folder}/ds_config.json"
    # All else is as it was, relative paths too.
    before, after = config.model_dump(), again.model_dump()
    for values in (before, after):
        del values["model"]["kind"], values["train"]["callbacks"], values["parallel"]["ds_config"]
    assert after == before


def test_what_the_users_code_has_imported_from_beside_it_is_in_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    write(
        own,
        {
            "back_of_mine.py": "import helps_mine, layers_of_mine.first\nfrom mres.train.callback import Callback\n"
            "class Mine(Callback): ...\n",
            "helps_mine.py": "",
            "layers_of_mine/__init__.py": "",
            "layers_of_mine/first.py": "",
            "not_imported.py": "",
        },
    )
    monkeypatch.syspath_prepend(own)
    config = run_config("train.callbacks=back_of_mine:Mine")
    callback_class(config.train.callbacks[0])
    names = files_below(taken(config, root) / "code")
    ours = {"launch/train.py", "mres/__init__.py", "mres/model.py"}
    assert names - ours == {"back_of_mine.py", "helps_mine.py", "layers_of_mine/__init__.py", "layers_of_mine/first.py"}


def test_a_module_that_would_lie_in_mres_own_folder_is_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"docs/__init__.py": "from mres.train.callback import Callback\nclass Mine(Callback): ...\n"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the module 'docs'.*--no-snapshot"):
        taken(run_config("train.callbacks=docs:Mine"), checkout)


def test_a_model_within_the_checkout_is_the_snapshots(checkout: Path) -> None:
    write(checkout, {"docs/mine.py": (ROOT / "docs" / "own_model.py").read_text()})
    config = run_config("model.kind=mres-folder/docs/mine.py:SPEC")
    folder = taken(config, checkout)
    assert load_config(folder / "config.yaml").model.kind == f"{folder.absolute()}/code/docs/mine.py:SPEC"
    assert not (folder / "own").exists()


def test_a_bound_that_is_exceeded_names_the_largest_and_leaves_nothing(checkout: Path) -> None:
    (checkout / "weights.bin").write_bytes(bytes(3 << 20))
    config = run_config()
    with pytest.raises(UserError, match=r"weights\.bin' \(3\.0 MiB\).*--snapshot-limit") as caught:
        taken(config, checkout, limit_mib=2)
    assert "--no-snapshot" in str(caught.value)
    assert not config.run_dir.exists()
    taken(config, checkout, limit_mib=4)


def test_one_replaces_another_whole(checkout: Path) -> None:
    config = run_config()
    write(checkout, {"mres/gone.py": "", "mres/model.py": "x = 2\n"})
    taken(config, checkout)
    (checkout / "mres" / "gone.py").unlink()
    write(checkout, {"mres/model.py": "x = 3\n"})
    folder = taken(config, checkout)
    assert (folder / "code" / "mres" / "model.py").read_text() == "x = 3\n"
    assert not (folder / "code" / "mres" / "gone.py").exists()


def test_the_snapshots_of_a_sweep_share_their_code(checkout: Path, tmp_path: Path) -> None:
    """Of what each member names, each has its own."""
    for name in ("one", "two"):
        write(tmp_path, {f"{name}/mine.py": f"name = '{name}'\n" + (ROOT / "docs" / "own_model.py").read_text()})
    first = taken(run_config("model.kind=one/mine.py:SPEC"), checkout)
    second = run_config("model.kind=two/mine.py:SPEC", "run.name=second")
    write(checkout, {"mres/model.py": "x = 'edited meanwhile'\n"})
    take(second.run_dir, second, checkout / "launch", 64, first)
    folder = second.run_dir / "snapshot"
    assert files_below(folder) == files_below(first)
    for name in files_below(folder / "code"):
        assert (folder / "code" / name).samefile(first / "code" / name)
    assert (folder / "own" / "0" / "mine.py").read_text().startswith("name = 'two'")
    assert load_config(folder / "config.yaml").model.kind == f"{folder.absolute()}/own/0/mine.py:SPEC"


def test_a_full_disk_leaves_the_old_one(checkout: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("mounting needs root")
    config = run_config(f"run.dir={small_disk}")
    folder = taken(config, checkout)
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    (checkout / "too_much.py").write_bytes(os.urandom(2 << 20))
    with pytest.raises(OSError, match=r"No space left.*too_much\.py"):
        taken(config, checkout)
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before
    assert sorted(path.name for path in config.run_dir.iterdir()) == ["snapshot"]


def test_code_of_a_snapshot_tells_the_commit_that_it_was_taken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real package; its run lies in a repository that has another commit."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "another", "--allow-empty")
    config = run_config()
    folder = taken(config, ROOT)
    asked = "import mres; from mres.supervise.software import git_sha; print(mres.__file__); print(git_sha())"
    environ = {**os.environ, "PYTHONPATH": str(folder.absolute() / "code")}
    done = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        str(folder.absolute() / "code" / "mres" / "__init__.py"),
        str(json.loads((folder / "info.json").read_text())["git_sha"]),
    ]
