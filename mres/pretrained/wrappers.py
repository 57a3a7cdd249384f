"""What stands before tensors' names: wrappers of training (`module.`, `_orig_mod.`, `teacher.`, `state_dict_ema.` …)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from mres.formats.folder import CheckpointError

# DDP's alone has a name that a model could have itself, so it is taken off where a name begins.
_LEADING = ("module",)
# Wherever they stand: torch.compile's, FSDP's, recomputing's, DeepSpeed's; no model calls a part of itself so.
_ANYWHERE = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)
_MOST_SHOWN = 3
_MOST_PARTS = 32


def plain_name(name: str) -> str:
    """Without what wraps modules in training, in any order and depth."""
    first, *others = name.split(".")
    parts = [part for part in (first, *others) if part not in _ANYWHERE]
    while len(parts) > 1 and parts[0] in _LEADING:
        parts = parts[1:]
    return ".".join(parts)


def plain_names(names: Iterable[str], source: str) -> dict[str, str]:
    """By the plain name, the name in the file.

    Raises:
        CheckpointError: two have the same.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(plain_name(name), name)
        if other != name:
            raise CheckpointError(
                f"{source} is ambiguous: {other} and {name} are both {plain_name(name)}; save the one you mean alone"
            )
    return found


def without_prefix(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Those that begin so, without it."""
    return {name.removeprefix(prefix): there for name, there in names.items() if name.startswith(prefix)}


def prefixes_before(names: Iterable[str], anchors: Collection[str]) -> Counter[str]:
    """What stands before one of `anchors` in the names ("" too), and how often."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".", _MOST_PARTS)
        for at in range(len(parts)):
            if ".".join(parts[at:]) in anchors:
                found[".".join(parts[:at]) + "." if at else ""] += 1
    return found


def one_prefix(prefixes: Iterable[str], source: str, what: str) -> str:
    """The only one of these.

    Raises:
        CheckpointError: there are several, all of which are named.
    """
    found = sorted(prefixes)
    if len(found) > 1:
        shown = ", ".join(f"'{prefix}'" for prefix in found[:_MOST_SHOWN]) + (", …" if len(found) > _MOST_SHOWN else "")
        raise CheckpointError(
            f"{source} is ambiguous: {what} stands in it under {shown}; save the one you mean into a file of its own"
        )
    return found[0]
