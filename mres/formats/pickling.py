"""Pickles of classes that are not imported: torch's and DeepSpeed's, by their names."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

# The pickler in C would import what a name stands for.
_PythonPickler: Any = vars(pickle)["_Pickler"]


class Name:
    """Whatever has this full name, such as "torch.float32"; pickled, it is the thing itself."""

    def __init__(self, full: str) -> None:
        self.full = full

    def __call__(self) -> None: ...  # what is pickled as a maker of objects must look like one

    def __reduce__(self) -> str:
        return self.full


class Made:
    """What a call of the named makes of `args`; `fields` are then set."""

    def __init__(self, name: str, args: tuple[Any, ...] = (), fields: dict[str, Any] | None = None) -> None:
        self.name, self.args, self.fields = name, args, fields

    def __reduce__(self) -> tuple[Any, ...]:
        made = (Name(self.name), self.args)
        return made if self.fields is None else (*made, self.fields)


class Record:
    """A dataclass of others: subclasses bear its name and module, `fields` is its state."""

    fields: Any

    def __getstate__(self) -> Any:
        return self.fields

    @classmethod
    def of(cls, fields: Any) -> Record:
        record = cls()
        record.fields = fields
        return record


def record_class(full: str, base: type[Record] = Record) -> type[Record]:
    """A class whose objects are pickled as those of the class with this full name."""
    module, _, name = full.rpartition(".")
    return type(name, (base,), {"__module__": module})


class Pickler(_PythonPickler):
    """Of protocol 2, as torch.save's is."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, Name):
            module, _, attribute = obj.full.rpartition(".")
        elif isinstance(obj, type) and issubclass(obj, Record):
            module, attribute = obj.__module__, obj.__name__
        else:
            assert obj is OrderedDict, f"{obj} would be pickled, which nobody else has"
            super().save_global(obj, name)
            return
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())
        self.memoize(obj)
