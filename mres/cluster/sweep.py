"""The members of a sweep: a grid of values, or a list of override sets, as runs with a folder and a name each.

`--sweep optim.lr=1e-5,3e-5 run.seed=0,1,2` makes six. Words behind `--sweep` with one value are overrides of all members,
as anywhere else; commas within brackets or quotes are part of a value. `--sweep sets.yaml` reads a list instead:

    - {optim.lr: 1e-5, run.seed: 0}
    - {optim.lr: 3e-5, run.name: bold}

The members' folders lie in that of the sweep, `<run.dir>/<run.name>`. A member keeps its number in `sweep.json`, by which
the tasks of a job array are counted, whatever is added to the sweep later.
"""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.config import Config, load_config
from mres.errors import UserError, about_os, near_path, shown
from mres.io.files import write_atomically
from mres.io.json_files import JsonError, read_json
from mres.io.yaml_files import YamlError, parse_yaml, read_text

SWEEP = "sweep.json"
MOST_MEMBERS = 1000  # what SLURM takes for an array where nobody has changed its MaxArraySize
_MOST_NAME_BYTES = 100
_RESERVED = ("slurm", "snapshot")  # what else lies in a sweep's folder
_NAME, _DIR = "run.name", "run.dir"

Overrides = Mapping[str, str]  # texts of YAML by dotted keys


@dataclass(frozen=True)
class Member:
    """One run; `overrides` are what makes it another one than its neighbours, `words` all that its config needs."""

    number: int
    name: str
    overrides: tuple[str, ...]
    words: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> Path:
        return self.config.run_dir


@dataclass(frozen=True)
class Sweep:
    """Its members in order; `config` is the first one's, but for folder and name, which are the sweep's own."""

    config: Config
    members: tuple[Member, ...]

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    def keep_numbers(self) -> None:
        """Writes `sweep.json`, in which members that an earlier call had stay. Raises: OSError."""
        rows: dict[int, Any] = dict(enumerate(_rows(self.folder)))
        rows |= {m.number: {"name": m.name, "overrides": list(m.overrides)} for m in self.members}
        write_atomically(self.folder / SWEEP, json.dumps([rows[n] for n in sorted(rows)], indent=1).encode())


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP).is_file()


def member_names(folder: Path) -> list[str]:
    """All members of a sweep that was submitted, by number. Raises: JsonError."""
    return [str(row["name"]) for row in _rows(folder)]


def member_number(folder: Path) -> int | None:
    """Of the run in `folder`; None where it is no member of a sweep. Raises: JsonError."""
    names = member_names(folder.parent)
    return names.index(folder.name) if folder.name in names else None


def make_sweep(path: Path | None, overrides: Sequence[str], words: Sequence[str]) -> Sweep:
    """The sweep that `words` behind `--sweep` ask for; every member's config is loaded, and so checked.

    Raises:
        UserError: words that are none, a member's config that is wrong, members of one name or without a difference, too
            many of them, a folder that is a run's.
    """
    files = [word for word in words if "=" not in word]
    grid = dict(_by_key(word for word in words if "=" in word))
    fixed = (*overrides, *(f"{key}={values[0]}" for key, values in grid.items() if len(values) == 1))
    axes = {key: values for key, values in grid.items() if len(values) > 1}
    sets = _listed(files, axes) if files else _product(axes)
    _refuse_twice(fixed, sets)
    base = [word for word in _words(sets[0]) if not word.startswith(f"{_NAME}=")]
    config = load_config(path, (*fixed, *base))
    _check_folder(config.run_dir)
    names = _names(sets)
    numbers = _numbers(config.run_dir, dict(zip(names, map(_words, sets), strict=True)))
    members = []
    for name, its in zip(names, sets, strict=True):
        placed = (*fixed, *_words(its), f"{_DIR}={json.dumps(str(config.run_dir))}", f"{_NAME}={name}")
        try:
            its_config = load_config(path, placed)
        except UserError as error:
            raise UserError(f"--sweep, member {', '.join(_words(its))}: {error}") from None
        members.append(Member(numbers[name], name, _words(its), placed, its_config))
    _refuse_alike(members)
    return Sweep(config, tuple(members))


def _by_key(words: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    seen = set()
    for word in words:
        key, _, text = word.partition("=")
        if key in seen:
            raise UserError(f"--sweep {key}: it is given twice; give all its values at once, such as {key}=1,2")
        seen.add(key)
        values = _split(text)
        if "" in values:
            raise UserError(f"--sweep {word}: a value is missing; expected values between commas, such as {key}=1,2")
        if twice := [value for value, number in Counter(values).items() if number > 1]:
            raise UserError(f"--sweep {word}: {twice[0]} is given twice, and two members would be the same")
        yield key, values


def _split(text: str) -> list[str]:
    """At commas that are within no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and parts[-1].rstrip()[-1:] in ("", *"[{,:"):  # not that of "it's"
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _product(axes: Mapping[str, Sequence[str]]) -> list[Overrides]:
    for key in (_NAME, _DIR):
        if key in axes:
            raise UserError(f"--sweep {key}: members get folders of their own in the sweep's; give {key} one value")
    if not axes:
        raise UserError("--sweep: no key has several values; expected such as --sweep optim.lr=1e-5,3e-5 run.seed=0,1")
    _check_number(math.prod(map(len, axes.values())))
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _listed(files: Sequence[str], axes: Mapping[str, Any]) -> list[Overrides]:
    """The override sets in a file."""
    if len(files) > 1 or axes:
        other = files[1] if len(files) > 1 else f"{next(iter(axes))}=…"
        raise UserError(f"--sweep {files[0]} {other}: expected a grid or one file with a list, not both; see --help")
    path = Path(files[0])
    try:
        found = parse_yaml(read_text(path), str(path))
    except FileNotFoundError:
        raise UserError(
            f"--sweep {path}: no such file{near_path(path)}; expected one with a list, or section.key=VALUE,VALUE"
        ) from None
    except OSError as error:
        raise UserError(f"--sweep: {about_os(error)}") from None
    except YamlError as error:
        raise UserError(f"--sweep: {error}") from None
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) and entry for entry in found):
        raise UserError(f"--sweep: '{path}' holds {shown(found)}; expected a list such as '- {{optim.lr: 1e-5}}'")
    _check_number(len(found))
    sets: list[Overrides] = [{str(key): _text(value) for key, value in entry.items()} for entry in found]
    if any(_DIR in entry for entry in sets):
        raise UserError(f"--sweep: '{path}' sets {_DIR}; members' folders lie in the sweep's, remove it")
    return sets


def _text(value: Any) -> str:
    """A value as the command line would have it."""
    if isinstance(value, str) and parse_yaml(value, "") == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _check_number(number: int) -> None:
    if number > MOST_MEMBERS:
        raise UserError(f"--sweep: {number:,} members; SLURM takes {MOST_MEMBERS} in an array, so split the sweep")


def _refuse_twice(fixed: Sequence[str], sets: Sequence[Overrides]) -> None:
    given = {word.lstrip("-").partition("=")[0] for word in fixed}
    for key in dict.fromkeys(itertools.chain.from_iterable(sets)):
        if key in given and key != _NAME:
            raise UserError(f"{key} is given to all members, and swept; one has no effect, so remove it")


def _words(overrides: Overrides) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in overrides.items())


def _names(sets: Sequence[Overrides]) -> list[str]:
    """Those given, and else `lr-1e-5_seed-0`: the keys' last parts, or more of them where those are the same."""
    keys = dict.fromkeys(itertools.chain.from_iterable(sets))
    last = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: tail if last[tail := key.rpartition(".")[2]] == 1 else key for key in keys}
    made = [its.get(_NAME) or "_".join(f"{_slug(short[key])}-{_slug(its[key])}" for key in its) for its in sets]
    alike = Counter(made)
    names = [
        name if _NAME in its or (alike[name] == 1 and len(name.encode()) <= _MOST_NAME_BYTES) else _cut(name, its)
        for name, its in zip(made, sets, strict=True)
    ]
    for name, number in Counter(names).items():
        if number > 1:
            raise UserError(
                f"--sweep: {number} members have the name '{name}'; give each a {_NAME} of its own, or none"
            )
        if name in _RESERVED:
            raise UserError(
                f"--sweep: a member cannot be called '{name}', as the sweep's own files are; name it otherwise"
            )
    return names


def _slug(text: str) -> str:
    """What a folder may be called."""
    return re.sub(r"[^\w.\-]+", "-", text).strip("-") or "none"


def _cut(name: str, overrides: Overrides) -> str:
    """Short enough, and still one of its own."""
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name.encode()[: _MOST_NAME_BYTES - 9].decode(errors='ignore')}-{digest}"


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        found = read_json(folder / SWEEP)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if not isinstance(found, list) or not all(
        isinstance(row, dict) and {"name", "overrides"} <= row.keys() for row in found
    ):
        raise JsonError(f"'{folder / SWEEP}' is no list of a sweep's members; name another folder (run.name=…)")
    return found


def _numbers(folder: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """The members' numbers: those that they had, and further ones."""
    rows = _rows(folder)
    numbers = {str(row["name"]): number for number, row in enumerate(rows)}
    for name, overrides in wanted.items():
        if name in numbers and (before := rows[numbers[name]]["overrides"]) != list(overrides):
            raise UserError(
                f"member '{name}' of the sweep in '{folder}' was {', '.join(before)}, and is now {', '.join(overrides)};"
                " give it another name, or the sweep another run.name"
            )
        numbers.setdefault(name, len(numbers))
    _check_number(len(numbers))
    return numbers


def _check_folder(folder: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "checkpoints"):
        if (folder / name).exists():
            raise UserError(f"'{folder}' is the folder of a run, not of a sweep; give the sweep another run.name=…")


def _refuse_alike(members: Sequence[Member]) -> None:
    seen: dict[str, Member] = {}
    for member in members:
        run = member.config.run.model_copy(update={"name": "", "dir": ""})
        same = seen.setdefault(member.config.model_copy(update={"run": run}).sha256(), member)
        if same is not member:
            raise UserError(
                f"--sweep: {', '.join(same.overrides)} and {', '.join(member.overrides)} are the same run; remove one, or give"
                " them different seeds (run.seed)"
            )
