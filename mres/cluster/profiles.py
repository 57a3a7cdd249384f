"""A cluster's options in a file, `configs/cluster/NAME.yaml`: what is the same for every job there. The command line wins.

A key is an option of launch/submit.py without its dashes. `setup` and `srun-arg` are lists, `env` and `sbatch` mappings;
the command line's setup lines come after a profile's, and its `--env` and `--sbatch` replace the profile's of the same name.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mres.cluster.request import JobRequest
from mres.cluster.values import SLURM_OPTIONS, check_setup, parse_env, sbatch_key
from mres.errors import UserError, about_os, near, shown
from mres.io.yaml_files import YamlError, parse_yaml, read_text

FOLDER = Path("configs") / "cluster"
_SHIPPED = Path(__file__).parents[2] / FOLDER
_LISTS = ("setup", "srun-arg", "container-mounts")
_MAPPINGS = ("env", "sbatch")
_DEFAULTS = ("nodes", "cpus-per-task", "max-requeues", "distribution", "cpu-bind", "python")
KEYS = (
    *(
        "nodes",
        "gpus-per-node",
        "tasks-per-node",
        "cpus-per-task",
        "time",
        "signal-delay",
        "max-requeues",
        "max-restarts",
        *SLURM_OPTIONS,
    ),
    *("distribution", "cpu-bind", "python", "container-image", *_LISTS, *_MAPPINGS),
)


def apply_profile(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, str]:
    """Fills what the command line left out from the profile that it names, if any.

    Returns:
        For each option that has a value, by its name without dashes, where that came from.

    Raises:
        UserError: no such profile, an unknown key, a value of the wrong kind, a credential in it.
    """
    origins = {key: "command line" for key in KEYS if _value(options, key) not in (None, [])}
    if options.profile is None:
        return origins
    path = _find(options.profile)
    for key, value in _read(path).items():
        where = f"{key} in '{path}'"
        if key in _MAPPINGS:
            added = _without(_pairs(key, value, where), _value(options, key))
        elif key in _LISTS:
            added = _texts(value, where)
        elif _value(options, key) is None:
            setattr(options, _dest(key), _typed(parser, key, value, where))
            origins[key] = str(path)
            continue
        else:
            continue
        if added:
            origins[key] = " and ".join(filter(None, (str(path), origins.get(key))))
            setattr(options, _dest(key), [*added, *_value(options, key)])
    return origins


def origin_lines(options: argparse.Namespace, origins: Mapping[str, str], request: JobRequest | None) -> Iterator[str]:
    """What is set, and where each value came from; of variables their names, since a value may be a credential.

    Args:
        request: what was made of it, whose other values are defaults; None for a sweep, each of whose members has its own.
    """
    for key in KEYS:
        if key not in origins:
            value = getattr(request, _dest(key), None) if key in _DEFAULTS else None
            if value is not None:
                yield f"--{key} {value}  (default)"
            continue
        value = _value(options, key)
        shown_value = (
            ", ".join(_name(text) if key == "env" else text for text in value) if isinstance(value, list) else value
        )
        yield f"--{key} {shown_value}  ({origins[key]})"


def _dest(key: str) -> str:
    return key.replace("-", "_")


def _value(options: argparse.Namespace, key: str) -> Any:
    return getattr(options, _dest(key))


def _find(profile: str) -> Path:
    """A path as it is; a name among the working folder's profiles, else among those that come with mres."""
    if "/" in profile or profile.endswith((".yaml", ".yml")):
        return Path(profile)
    candidates = [folder / f"{profile}.yaml" for folder in (FOLDER, _SHIPPED)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({path.stem for folder in (FOLDER, _SHIPPED) for path in folder.glob("*.yaml")})
    hint = near(profile, known) if known else f"there is none in {FOLDER}"
    raise UserError(f"--profile {profile}: no '{candidates[0]}'; {hint}; or give the path of a file")


def _read(path: Path) -> dict[str, Any]:
    """The file's keys as options are spelt, those without a value left out."""
    try:
        values = parse_yaml(read_text(path), str(path))
    except OSError as error:
        raise UserError(f"--profile: {about_os(error)}") from None
    except YamlError as error:
        raise UserError(f"--profile: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--profile: '{path}' holds {shown(values)}; expected options such as 'partition: gpu'")
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("_", "-")
        if key not in KEYS:
            raise UserError(f"unknown key '{name}' in the profile '{path}'; {near(key, KEYS)}")
        if key in found:
            raise UserError(f"'{key}' is given twice in the profile '{path}'")
        found[key] = value
    return {key: value for key, value in found.items() if value is not None}


def _typed(parser: argparse.ArgumentParser, key: str, value: Any, where: str) -> Any:
    """A single value, as the command line would read it."""
    action = next(action for action in parser._actions if f"--{key}" in action.option_strings)
    text = _text(value, where)
    try:
        return action.type(text) if callable(action.type) else text
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{where}: {error}") from None


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise UserError(f"{where} is {shown(value)}; expected one value")
    return str(value)


def _texts(value: Any, where: str) -> list[str]:
    """A list; one text is a list of one."""
    values = value if isinstance(value, list) else [value]
    texts = [_text(item, where) for item in values]
    if where.startswith("setup"):
        check_setup(texts)
    return texts


def _pairs(key: str, value: Any, where: str) -> list[str]:
    """A mapping as `NAME=VALUE`; `NAME` alone where it says null (a variable as it is here) or true (a flag of sbatch)."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}; expected a mapping such as 'NAME: value'")
    alone = None if key == "env" else True
    pairs = [
        str(name) if given is alone else f"{name}={_text(given, f'{name} of {where}')}" for name, given in value.items()
    ]
    if key == "env":
        _, private = parse_env([pair for pair in pairs if "=" in pair], {})
        for name in private:
            raise UserError(
                f"{where}: {name} is a credential, and profiles are handed on; export it and write '{name}: null'"
            )
    return pairs


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def _without(pairs: list[str], given: Sequence[str]) -> list[str]:
    """The profile's pairs whose names the command line does not give."""
    names = {sbatch_key(_name(pair)) for pair in given}
    return [pair for pair in pairs if sbatch_key(_name(pair)) not in names]
