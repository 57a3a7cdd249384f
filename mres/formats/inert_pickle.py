"""A pickle's stack machine in which nothing can run, hang, or take more memory than the pickle has bytes.

Readers subclass it: `named` says what each name stands for. Only that is called, only stand-ins get fields, and nothing is
imported. It is Python's own machine written in Python: the one in C takes memory for whatever number a value is to be
remembered under. Stricter than torch's weights_only=True with an allow-list, which hangs in keys that are nested tuples.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

# None, numbers, texts, bytes, lists, tuples, dictionaries; names, calls, objects and their fields; storages; the memo.
_OPCODES = b"\x80\x95.NIJKML\x88\x89\x8a\x8bFGXVUTC\x8c\x8d\x8eB]ale)t\x85\x86\x87}us(0" + b"12qrpghj\x94c\x93R\x81bQ"
_PLAIN = (str, int, float, bytes, type(None))
_PythonUnpickler: Any = vars(pickle)["_Unpickler"]


class RefusedError(ValueError):
    """It wants what is not let through."""


class Inert:
    """Stands for an object of a class that is known and not needed; `args` is what it was made of."""

    __slots__ = ("args",)

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Its fields are not needed either."""


class Maker:
    """Stands for a function: what it makes of its arguments."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class _Memo(list[Any]):
    """What is remembered, under numbers that are counted up: as a dictionary, most of an index's memory."""

    def __setitem__(self, number: Any, value: Any) -> None:
        if number == len(self):
            self.append(value)
        else:
            super().__setitem__(number, value)


class InertUnpickler(_PythonUnpickler):
    """Reads one pickle.

    Raises:
        RefusedError: it wants what is not let through.
        Exception: it is damaged; a pickle can fail in any way.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: action for code, action in _PythonUnpickler.dispatch.items() if code in _OPCODES
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin-1")
        self.memo = _Memo()

    def named(self, full: str) -> Any:
        """What "module.name" stands for: a `Maker`, a subclass of `Inert`, or a value; None where it is refused."""
        raise NotImplementedError

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            if isinstance(code := error.args[0], int) and code not in self.dispatch:
                raise RefusedError(f"it has the opcode {bytes([code % 256])!r}, which no checkpoint has") from None
            raise

    def find_class(self, module: str, name: str) -> Any:
        found = self.named(f"{module}.{name}")
        if found is None:
            raise RefusedError(f"it names {module}.{name}, which no such checkpoint contains and which may run code")
        return found

    def _load_reduce(self) -> None:
        args, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Maker):
            self.stack[-1] = made.make(*args)
        elif _is_stand_in(made):
            self.stack[-1] = made(*args)
        else:
            raise RefusedError(f"it calls a {type(made).__name__}")

    def _load_newobj(self) -> None:
        args, made = self.stack.pop(), self.stack[-1]
        if not _is_stand_in(made):
            raise RefusedError("it makes an object of another class than those that are known")
        self.stack[-1] = made(*args)

    def _load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert):
            made.__setstate__(state)
        elif not isinstance(made, dict):  # a dictionary's attributes, such as a state_dict's _metadata, are not needed
            raise RefusedError(f"it sets fields of a {type(made).__name__}")

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _dictionary(self.stack[-1])[_checked(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        _dictionary(self.stack[-1]).update(zip(map(_checked, items[::2]), items[1::2], strict=True))

    def _remember(self, number: int) -> None:
        if number > len(self.memo):
            raise RefusedError(f"it remembers a value under the number {number}, which is not the next")
        self.memo[number] = self.stack[-1]

    dispatch |= {
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_newobj,
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.PUT[0]: lambda self: self._remember(int(self.readline()[:-1])),
        pickle.BINPUT[0]: lambda self: self._remember(self.read(1)[0]),
        pickle.LONG_BINPUT[0]: lambda self: self._remember(int.from_bytes(self.read(4), "little")),
    }


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Inert)


def _dictionary(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise RefusedError(f"it puts items into a {type(value).__name__}")
    return value


def _checked(key: Any) -> Any:
    """What can be hashed at once: hashing a nested tuple may take for ever."""
    if type(key) is str:
        return key
    parts = key if type(key) is tuple else (key,)
    if not all(isinstance(part, _PLAIN) for part in parts) and not isinstance(key, Inert):
        raise RefusedError(f"it has a {type(key).__name__} of other things than texts and numbers as a key")
    return key
