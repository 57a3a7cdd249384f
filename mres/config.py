"""A run's config: YAML plus `section.key=value` overrides into typed sections, strict.

Each section is declared beside its owner (`mres/<room>/config.py`); this file only composes, loads and explains errors.
`python -m mres.config configs/demo.yaml optim.lr=1e-4` prints the resolved config.
"""

import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mres.checkpoint.config import CheckpointConfig
from mres.errors import UserError, exit_on_user_error
from mres.evaluate.config import EvaluateConfig
from mres.model.config import LossConfig, ModelConfig
from mres.parallel.config import ParallelConfig
from mres.stream.config import DataConfig
from mres.train.config import OptimConfig, RunConfig, TrainConfig


class ConfigError(UserError):
    """A config that cannot be used; the message names the key, the file (or command line) and the remedy."""


class Config(BaseModel):
    """Everything a run depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig.model_validate({})
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.data.images_per_batch % self.train.accumulate:
            raise ValueError(
                f"data.images_per_batch={self.data.images_per_batch} is not a multiple of train.accumulate={self.train.accumulate}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    def to_yaml(self) -> str:
        """The config with every default written out; it loads back to an equal config."""
        return yaml.safe_dump(_settable(self), sort_keys=False, allow_unicode=True)

    def sha256(self) -> str:
        """Hash of all keys; ranks compare it before they start."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _settable(config: Config) -> dict[str, Any]:
    """A dump without the keys that are refused where they would have no effect (`parallel.zero_stage` under fsdp)."""
    values = config.model_dump(mode="json")
    parallel = values["parallel"]
    if parallel["strategy"] != "zero":
        del parallel["zero_stage"]
    if parallel["strategy"] != "fsdp":
        del parallel["reshard_after_forward"]
    return values


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `section.key=value` overrides and checks the result.

    Raises:
        ConfigError: unreadable file, unknown key (with near names), wrong value, keys that contradict each other.
    """
    values = _read(path) if path is not None else {}
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        _set(values, keys, value, override)
        given[keys] = override
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        unknown = [d for d in details if d["type"] == "extra_forbidden"]
        wrong = [d for d in details if d["type"] != "missing"]  # a wrong model.size leaves the keys it fills missing
        raise ConfigError("\n".join(_explain(d, path, given) for d in (unknown or wrong or details))) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config at '{path}'; the configs that come with mres are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config '{path}': {error}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not YAML: {getattr(error, 'problem', error)} ({place})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"expected sections ({', '.join(Config.model_fields)}), found {type(values).__name__} ({path})")
    return values


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.lstrip("-").split("."))
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"cannot read '{override}': an override is section.key=value, such as optim.lr=1e-4")
    try:
        return keys, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of '{override}' as YAML") from None


def _settable(config: Config) -> dict[str, Any]:
    """A dump without the keys that are refused where they would have no effect (`parallel.zero_stage` under fsdp)."""
    values = config.model_dump(mode="json")
    parallel = values["parallel"]
    if parallel["strategy"] != "zero":
        del parallel["zero_stage"]
    if parallel["strategy"] != "fsdp":
        del parallel["reshard_after_forward"]
    return values


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `section.key=value` overrides and checks the result.

    Raises:
        ConfigError: unreadable file, unknown key (with near names), wrong value, keys that contradict each other.
    """
    values = _read(path) if path is not None else {}
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        _set(values, keys, value, override)
        given[keys] = override
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        unknown = [d for d in details if d["type"] == "extra_forbidden"]
        wrong = [d for d in details if d["type"] != "missing"]  # a wrong model.size leaves the keys it fills missing
        raise ConfigError("\n".join(_explain(d, path, given) for d in (unknown or wrong or details))) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config at '{path}'; the configs that come with mres are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config '{path}': {error}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not YAML: {getattr(error, 'problem', error)} ({place})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"expected sections ({', '.join(Config.model_fields)}), found {type(values).__name__} ({path})")
    return values


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.lstrip("-").split("."))
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"cannot read '{override}': an override is section.key=value, such as optim.lr=1e-4")
    try:
        return keys, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of '{override}' as YAML") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text (it wants 1.0e-4); pydantic turns such text into a number where one is due."""
    return "" if value is None else value


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot apply '{override}': '{key}' is not a section")
    values[keys[-1]] = value


def _explain(detail: ErrorDetails, path: Path | None, given: dict[tuple[str, ...], str]) -> str:
    keys = tuple(str(part) for part in detail["loc"])
    dotted = ".".join(keys)
    override = next((text for k, text in given.items() if keys[: len(k)] == k), None)
    where = "command line" if override or path is None else str(path)
    if detail["type"] == "extra_forbidden":
        suggestion = _near(keys)
        return f"unknown key '{dotted}' ({where})" + (f"; did you mean '{suggestion}'?" if suggestion else _allowed(keys))
    message = detail["msg"].removeprefix("Value error, ")
    found = "" if detail["type"] in ("value_error", "missing") else f" = {detail['input']!r}"
    return f"{dotted or 'config'}{found}: {message} ({where})"


def _known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        aliases = extra.get("also_called", []) if isinstance(extra, dict) else []
        yield prefix + name, [str(alias) for alias in aliases] if isinstance(aliases, list) else []
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _near(keys: tuple[str, ...]) -> str | None:
    """The known key that was probably meant: by another framework's name for it, by spelling, in any section."""
    dotted, last = ".".join(keys), keys[-1]
    known = dict(_known_keys())
    for name, aliases in known.items():
        if last in aliases:
            return name
    same_section = [name for name in known if name.split(".")[:-1] == list(keys[:-1])]
    for names in (same_section, list(known)):
        by_last = {name.split(".")[-1]: name for name in reversed(names)}
        close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
        if close:
            return by_last[close[0]]
    close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.7)
    return close[0] if close else None


def _allowed(keys: tuple[str, ...]) -> str:
    depth, section = len(keys), ".".join(keys[:-1])
    names = [n for n, _ in _known_keys() if n.count(".") == depth - 1 and n.startswith(f"{section}." if section else "")]
    return f"; allowed{f' in {section}' if section else ''}: {', '.join(n.split('.')[-1] for n in names)}"


@exit_on_user_error
def main() -> int:
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m mres.config CONFIG.yaml [section.key=value …]   prints the resolved config")
        return 0
    print(load_config(Path(sys.argv[1]), sys.argv[2:]).to_yaml(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
