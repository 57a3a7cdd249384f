"""The one seam for what looks at a run while it trains: heartbeat, profiler, metrics' files, and a user's own classes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mres.errors import UserError, near
from mres.io.plugins import failure, load_object

if TYPE_CHECKING:
    from mres.config import Config
    from mres.stream.batch import Batch
    from mres.supervise.world import World


class Callback:
    """Does nothing; a class of one's own overrides what it wants.

    Every rank has one and calls it in its training thread; the time it takes is in no rate. Steps count from 1, as in
    metrics.jsonl.

    Attributes:
        config: of the run, with all its keys.
        world: this process's `rank`, the number of ranks (`size`), `is_main` (rank 0) and `device`.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world

    def run_start(self, first_step: int) -> None:
        """Training goes on after `first_step` steps: at the start, and where the run goes back by itself.

        What was told of later steps is void then.
        """

    def phase(self, name: str, step: int) -> None:
        """The training thread enters one of `mres.supervise.heartbeat.PHASES` of a step."""

    def before_step(self, step: int) -> None:
        """This rank has its batch."""

    def after_step(self, step: int, batch: Batch) -> None:
        """The optimizer has moved, or the step was skipped; `batch` is this rank's share of the global batch."""

    def on_log(self, metrics: dict[str, float | int]) -> None:
        """A line of metrics is due; what rank 0 adds to `metrics` is in metrics.jsonl and TensorBoard."""

    def evaluated(self, step: int, table: Mapping[str, Any]) -> None:
        """An evaluation during training gave `table` (a line of evaluations.jsonl); called on rank 0 only."""

    def checkpointed(self, step: int, folder: Path) -> None:
        """The checkpoint of `step` is whole on the disk; ranks may hear of it in different later steps."""

    def close(self) -> None:
        """The run ends, also by an error."""


METHODS = tuple(name for name in vars(Callback) if not name.startswith("_"))


class Callbacks(Callback):
    """Several as one: each method calls that of all of them, in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def _each(self, name: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, name)(*arguments)

    def close(self) -> None:
        with ExitStack() as stack:  # each of them, whatever another one raises
            for callback in reversed(self._callbacks):
                stack.callback(callback.close)


for _name in set(METHODS) - {"close"}:
    setattr(Callbacks, _name, functools.partialmethod(Callbacks._each, _name))


def callback_class(reference: str) -> type[Callback]:
    """The class that an entry of `train.callbacks` names.

    Raises:
        UserError: there is none, it is no `Callback`, or a method that would never be called has nearly a hook's name.
    """
    found = load_object(reference, "train.callbacks")
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise UserError(
            f"train.callbacks='{reference}' is no callback: it must be a class derived from mres.train.callback.Callback"
        )
    for name in dir(found):
        is_own = not name.startswith("_") and not hasattr(Callback, name) and callable(getattr(found, name))
        if is_own and (hint := near(name, METHODS, otherwise="")):
            raise UserError(
                f"train.callbacks='{reference}': its method '{name}' would never be called; {hint} (a method for the class's "
                f"own use begins with _)"
            )
    return found


def users_callbacks(config: Config, world: World) -> list[Callback]:
    """One of each class of `train.callbacks`; what it raises ends the run with its name."""
    made = []
    for reference in config.train.callbacks:
        callback = _named(callback_class(reference), reference)(config, world)
        for name in METHODS:
            setattr(callback, name, _named(getattr(callback, name), reference))
        callback.on_log = _only_adding(callback.on_log, reference)
        made.append(callback)
    return made


def _only_adding(on_log: Callable[[dict[str, Any]], None], reference: str) -> Callable[[dict[str, Any]], None]:
    """`on_log`, which may add numbers to a line of metrics and change nothing else."""

    def called(metrics: dict[str, Any]) -> None:
        before = metrics.copy()
        on_log(metrics)
        wrong = [name for name, value in before.items() if metrics.get(name) is not value]
        wrong += [name for name, value in metrics.items() if not isinstance(value, int | float)]
        if wrong:
            raise UserError(
                f"the callback '{reference}' (train.callbacks) makes {metrics.get(wrong[0])!r} of the metric '{wrong[0]}'; "
                "on_log may add numbers (int, float) of its own"
            )

    return called


def _named(method: Callable[..., Any], reference: str) -> Callable[..., Any]:
    """`method`, whose errors say which callback they are of."""

    @functools.wraps(method)
    def called(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (Exception, SystemExit) as error:  # an exit would end the run as if all were well
            from mres.supervise.peer_monitor import is_of_communication

            if is_of_communication(error):  # another rank's fault, perhaps, which is found out elsewhere
                raise
            own_file = getattr(sys.modules[method.__module__], "__file__", None)
            what = f"the callback '{reference}' (train.callbacks) failed in {method.__name__}"
            raise UserError(f"{what}: {failure(error, own_file)}") from error

    return called
