"""What a user's own Python file or module brings, named in a config as `path/to/file.py:NAME` or `package.module:NAME`."""

import __future__

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mres.errors import UserError, near
from mres.io.files import file_sha256


def load_object(reference: str, key: str) -> Any:
    """The object that `reference` names; a file is run once a process, however often it is named.

    Args:
        reference: `path/to/file.py:NAME`, a path relative to the working directory, or `package.module:NAME`.
        key: the config key it was given for, for messages.

    Raises:
        UserError: it names no such thing, or the file or module fails while it is imported.
    """
    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UserError(f"{key}='{reference}': name it as path/to/file.py:NAME or package.module:NAME")
    module = _load(where, f"{key}='{reference}'")
    if not hasattr(module, name):
        own = [other for other, value in vars(module).items() if not other.startswith("_") and _is_of(module, value)]
        hint = near(name, own, otherwise=f"it defines {', '.join(own) or 'nothing'}")
        raise UserError(f"{key}='{reference}': '{where}' has no '{name}'; {hint}")
    return getattr(module, name)


def origin(reference: str) -> tuple[str, str]:
    """The file that a reference is found in, and its SHA-256."""
    where = reference.rpartition(":")[0]
    path = where if where.endswith(".py") else str(getattr(importlib.util.find_spec(where), "origin", None))
    return path, file_sha256(Path(path))


def _is_of(module: ModuleType, value: Any) -> bool:
    """Whether a value is the module's own and not something that it imports."""
    named = isinstance(value, type | FunctionType)  # another object's is its class's
    return not isinstance(value, ModuleType | __future__._Feature) and (
        not named or value.__module__ == module.__name__
    )


def _load(where: str, what: str) -> ModuleType:
    path = Path(where)
    if path.suffix == ".py" and not path.is_file():
        others = {other.name: str(other) for other in path.parent.glob("*.py")}
        hint = near(path.name, others, otherwise="put it there or name another")
        raise UserError(f"{what}: there is no file '{where}' (from '{Path.cwd()}'); {hint}")
    file = str(path.resolve()) if path.suffix == ".py" else None
    try:
        return _load_file(path.resolve()) if path.suffix == ".py" else importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{where}.".startswith(f"{error.name}."):
            raise UserError(
                f"{what}: there is no module '{error.name}'; install it, put its folder into PYTHONPATH, or name a file"
            ) from None
        raise UserError(f"{what}: importing it failed: {failure(error, file)}") from error
    except (Exception, SystemExit) as error:  # an exit would look as if all had been done
        raise UserError(f"{what}: importing it failed: {failure(error, file)}") from error


def failure(error: Exception | SystemExit, file: str | None = None) -> str:
    """What a user's code raised, and where: in `file`, if that is on the way there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    at = error if isinstance(error, SyntaxError) else (own or frames)[-1]
    place = f" ({at.filename}:{at.lineno})" if at.filename else ""
    return f"{error}{place}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}{place}"


def _load_file(path: Path) -> ModuleType:
    name = f"mres_plugin_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "its name ends with .py"
    assert spec.loader is not None, "its name ends with .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
