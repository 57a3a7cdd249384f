"""Pickles with objects in them, read by the machine of `unpickling.py`: a reader says what each name stands for.

Only what it says is called, only stand-ins get fields, and nothing is imported.
"""

from collections.abc import Callable
from typing import Any

from mres.io.unpickling import Inert, PlainUnpickler, RefusedError, opcode_table

_MOST_ARGUMENTS = 64  # what is unpacked at a call may be named again and again


class Maker:
    """Stands for a function: what it makes of its arguments."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class ObjectUnpickler(PlainUnpickler):
    """Reads a pickle with objects in it.

    Raises:
        RefusedError: it wants what no stand-in is for.
        Exception: it is damaged; a pickle can fail in any way.
    """

    def named(self, full: str) -> Any:
        """What "module.name" stands for: a `Maker`, a subclass of `Inert`, or a value; None where it is refused."""
        raise NotImplementedError

    def persistent_load(self, pid: Any) -> Any:
        """What stands for something outside of the pickle."""
        raise RefusedError("it wants something outside of it")

    def find(self, full: str) -> Any:
        found = self.named(full)
        if found is None:
            self.refuse_name(full, self.at)
        return found

    def call(self) -> Any:
        made, args = self.last(2)
        if isinstance(made, Maker):
            return made.make(*_arguments(args))
        return self.new(made, args)

    def new(self, made: Any, args: Any) -> Inert:
        if not (isinstance(made, type) and issubclass(made, Inert)):
            raise RefusedError(f"it calls a {type(made).__name__} at byte {self.at}")
        return self.container(made(*_arguments(args)))

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert):
            made.__setstate__(state)
        elif not isinstance(made, dict):  # a dictionary's attributes, such as a state_dict's _metadata, are not needed
            raise RefusedError(f"it sets fields of a {type(made).__name__} at byte {self.at}")


def _arguments(args: Any) -> tuple[Any, ...]:
    if type(args) is not tuple or len(args) > _MOST_ARGUMENTS:
        raise ValueError(f"a call of it has no arguments, or more than {_MOST_ARGUMENTS}")
    return args


ObjectUnpickler.values = PlainUnpickler.values | opcode_table(
    {
        b"2": lambda m: m.stack[-1],
        b"c": lambda m: m.find(m.global_name()),
        b"\x93": lambda m: m.find(m.stack_name()),
        b"R": lambda m: m.call(),
        b"\x81": lambda m: m.new(*m.last(2)),
        b"Q": lambda m: m.persistent_load(m.stack.pop()),
    }
)
ObjectUnpickler.actions = PlainUnpickler.actions | opcode_table(
    {
        b"0": lambda m: m.stack.pop(),
        b"1": lambda m: m.since_mark(),
        b"b": lambda m: m.build(),
    }
)
