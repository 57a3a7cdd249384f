"""A run's config: YAML plus `section.key=value` overrides into typed sections, strict.

Each section is declared beside its owner (`mres/<room>/config.py`); this file only composes, loads and explains errors.
`python -m mres.config configs/demo.yaml optim.lr=1e-4` prints the resolved config.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mres.checkpoint.config import CheckpointConfig
from mres.credentials import redacted, refusal
from mres.errors import UserError, exit_on_user_error, near, near_path, shown
from mres.evaluate.config import EvaluateConfig
from mres.io.local import check_local
from mres.io.yaml_files import YamlError, parse_yaml, read_text
from mres.model.config import DEFAULT_KIND, LossConfig, ModelConfig
from mres.model.spec import ModelSpec, absolute_kind, is_same_kind, load_spec
from mres.parallel.config import ParallelConfig
from mres.section import Section, told
from mres.stream.config import DataConfig
from mres.train.config import OptimConfig, RunConfig, TrainConfig

_SHOWN = 20  # errors in one message
_SHIPPED = Path(__file__).parents[1] / "configs"


class ConfigError(UserError):
    """A config that cannot be used; the message names the key, the file (or command line) and the remedy."""


class Config(Section):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: SerializeAsAny[ModelConfig] = Field(default={}, validate_default=True)
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_kind(cls, values: Any) -> Any:
        """The keys of the model section are those of its kind."""
        if not isinstance(values, dict):
            return values
        kind = absolute_kind(_kind(values))
        return load_spec(kind).config.model_validate({**values, "kind": kind})

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.data.images_per_batch % self.train.accumulate:
            raise ValueError(
                f"data.images_per_batch={self.data.images_per_batch} is not a multiple of "
                f"train.accumulate={self.train.accumulate}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Raises: UserError: `run.dir` is a URL."""
        check_local(self.run.dir)
        return Path(self.run.dir) / self.run.name

    def to_yaml(self) -> str:
        """The config with every default written out; it loads back to an equal config."""
        return yaml.safe_dump(_settable(self), sort_keys=False, allow_unicode=True)

    def sha256(self) -> str:
        """Hash of all keys."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _kind(model: Any) -> str:
    """The kind that a model section is of."""
    kind = model.get("kind", DEFAULT_KIND) if isinstance(model, dict) else DEFAULT_KIND
    if not isinstance(kind, str):
        raise ConfigError(f"model.kind = {kind!r}: a name is due, such as {DEFAULT_KIND}")
    return kind


def _spec_of(kind: str, path: Path | None) -> ModelSpec:
    """The spec of a kind, which the file at `path` names, if any."""
    try:
        return load_spec(kind)
    except UserError as error:
        if path is None or ":" not in kind:
            raise
        remedy = (
            "if it has moved, say where it lies now: model.kind=… of launch/, --kind path/to/my_model.py:SPEC of tools/"
        )
        raise ConfigError(f"{error} ({path}); {remedy}") from None


def _settable(config: Config) -> dict[str, Any]:
    """A dump without the keys that are refused where they would have no effect (`parallel.zero_stage` under fsdp)."""
    values = config.model_dump(mode="json")
    for name, section in config:
        for key in section.keys_of_others():
            del values[name][key]
    return values


def load_config(
    path: Path | None, overrides: Sequence[str] = (), *, kind: str | None = None, stored: bool = False
) -> Config:
    """Reads a YAML file, applies `section.key=value` overrides and checks the result.

    Args:
        stored: the file was saved by a run: what credentials there are in it are left out instead of refused.
        kind: where the file of the model lies now, if not where the YAML file says; its other keys stay.

    Raises:
        ConfigError: unreadable file, unknown key (with near names), wrong value, keys that contradict each other.
    """
    values = _read(path, stored=stored) if path is not None else {}
    if kind is not None and isinstance(values.setdefault("model", {}), dict):
        values["model"]["kind"] = kind
    split = [(override, *_split(override)) for override in overrides]
    before = _kind(values.get("model"))
    chosen = next((text for _, keys, text in reversed(split) if keys == ("model", "kind")), before)
    if not is_same_kind(chosen, before):
        values.pop("model", None)  # the file's keys are another kind's
    known = dict(known_keys(_spec_of(chosen, path if chosen == before and kind is None else None).config))
    source = _Source(path, tuple(keys for _, keys, _ in split), known)
    parsed = [(override, keys, _parse(override, text, known.get(".".join(keys)))) for override, keys, text in split]
    for _, keys, value in parsed:
        _drop_what_belongs_elsewhere(values, keys, value, known)
    for override, keys, value in parsed:
        _set(values, keys, value, override)
    _refuse_misread(values, source)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        unknown = [d for d in details if d["type"] == "extra_forbidden"]
        wrong = [d for d in details if d["type"] != "missing"]  # a wrong model.size leaves the keys it fills missing
        chosen_ones = unknown or wrong or details
        left_out = [f"… and {len(chosen_ones) - _SHOWN} more"] if len(chosen_ones) > _SHOWN else []
        raise ConfigError("\n".join([_explain(d, source) for d in chosen_ones[:_SHOWN]] + left_out)) from None


@dataclass(frozen=True, slots=True)
class _Source:
    """What messages need: the file, the keys that the command line gave, and all keys that there are."""

    path: Path | None
    given: tuple[tuple[str, ...], ...]
    known: dict[str, FieldInfo]

    def where(self, keys: tuple[str, ...]) -> str:
        """Where the value at `keys` came from: the file, the command line, or both where keys contradict each other."""
        if self.path is None or any(keys[: len(k)] == k for k in self.given):
            return "command line"
        return f"{self.path} and command line" if any(k[: len(keys)] == keys for k in self.given) else str(self.path)


def _read(path: Path, *, stored: bool) -> dict[str, Any]:
    try:
        text = read_text(path)
        values = parse_yaml(redacted(text) if stored else text, str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"no config at '{path}'{near_path(path, _SHIPPED)}; the configs that come with mres are in configs/"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the config '{path}': {error.strerror}") from None
    except YamlError as error:
        raise ConfigError(str(error)) from None
    return _sections(values, str(path))


def _sections(values: Any, where: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"expected sections ({', '.join(Config.model_fields)}), found {type(values).__name__} ({where})"
        )
    # A section whose keys are all commented out is an empty one.
    return {str(key): value for key, value in values.items() if value is not None}


def _split(override: str) -> tuple[tuple[str, ...], str]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.lstrip("-").split("."))
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"cannot read '{override}': an override is section.key=value, such as optim.lr=1e-4")
    return keys, text


def _parse(override: str, text: str, field: FieldInfo | None) -> Any:
    try:
        value = parse_yaml(text, "command line")
    except YamlError as error:
        raise ConfigError(f"cannot read the value of '{override[:200]}' as YAML ({error})") from None
    # run.name=007 is a name; YAML reads it as the number 7.
    is_text = field is not None and field.annotation in (str, str | None) and value is not None
    return text if is_text and not isinstance(value, str) else value


def _drop_what_belongs_elsewhere(
    values: dict[str, Any], keys: tuple[str, ...], value: Any, known: dict[str, FieldInfo]
) -> None:
    """A file's keys for its own strategy must not keep the command line from naming another one."""
    section = values.get(keys[0])
    for name, field in known.items():
        inside, _, key = name.rpartition(".")
        owners = [
            owner for owner in told(field, "belongs_to") if (inside, owner.partition("=")[0]) == (keys[0], keys[-1])
        ]
        if owners and f"{keys[-1]}={value}" not in owners and isinstance(section, dict):
            section.pop(key, None)


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot apply '{override}': '{key}' is not a section")
    values[keys[-1]] = value


def _refuse_misread(values: Any, source: _Source, keys: tuple[str, ...] = ()) -> None:
    """What pydantic or a run would take for something else than was meant, and what must not be saved."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values, start=1)
        for key, value in pairs:
            if problem := refusal(str(key)):
                raise ConfigError(f"{'.'.join(keys)}: {problem} ({source.where(keys)})")
            _refuse_misread(value, source, (*keys, str(key)))
        return
    name = ".".join(keys)
    field = source.known.get(name)
    is_number = field is not None and field.annotation in (int, float, int | None, float | None)
    problem = refusal(values) if isinstance(values, str) else None
    if is_number and values is True:  # pydantic takes it for 1: `augment.flip: true` would flip every image; false is 0
        problem = "a number is due"
    elif is_number and isinstance(values, str) and re.fullmatch(r"[-+]?0[0-9_]+", values):
        problem = "YAML 1.1 reads a leading zero as octal, others do not; write the number without it"
    elif type(values) is int and abs(values) >= 2**63:
        problem = "a number below 2^63 is due"
    if problem:
        found = "" if isinstance(values, str) and not is_number else f" = {str(values)[:80]}"
        raise ConfigError(f"{name}{found}: {problem} ({source.where(keys)})")


def _explain(detail: ErrorDetails, source: _Source) -> str:
    keys = tuple(str(part) for part in detail["loc"])
    dotted = ".".join(keys)
    where = source.where(keys)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{dotted[:200]}' ({where}); {_near(keys, source.known)}"
    message = detail["msg"].removeprefix("Value error, ")[:1000]
    found = "" if detail["type"] in ("value_error", "missing") else f" = {shown(detail['input'], 200)}"
    return f"{dotted or 'config'}{found}: {message} ({where})"


def known_keys(
    model: type[ModelConfig], of: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every section and key with its dotted name; those of the model section are `model`'s."""
    for name, field in of.model_fields.items():
        yield prefix + name, field
        section = model if field.annotation is ModelConfig else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from known_keys(model, section, f"{prefix}{name}.")


def _near(keys: tuple[str, ...], known: dict[str, FieldInfo]) -> str:
    """The known key that was probably meant: by spelling or by another framework's name, in its section or in any."""
    section = ".".join(keys[:-1])
    here = {name: field for name, field in known.items() if name.rpartition(".")[0] == section}
    as_deep = [] if here else [name for name in known if name.count(".") == len(keys) - 1]
    inside = f" in {section}" if section else ""
    allowed = f"allowed{inside}: {', '.join(name.rpartition('.')[2] for name in here)}"
    return near(keys[-1], _by_last(here), _by_last(known), otherwise=near(".".join(keys), as_deep, otherwise=allowed))


def _by_last(fields: dict[str, FieldInfo]) -> dict[str, str]:
    """Dotted names by their last part, and by what other frameworks call them."""
    by_last = {name.split(".")[-1]: name for name in reversed(fields)}
    return by_last | {other: name for name, field in fields.items() for other in told(field, "also_called")}


@exit_on_user_error
def main() -> int:
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m mres.config CONFIG.yaml [section.key=value …]   prints the resolved config")
        return 0
    print(load_config(Path(sys.argv[1]), sys.argv[2:]).to_yaml(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
