"""Check that every package that mres needs is pinned, and installed at its pin: `make setup` ends with it."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mres.cli import Parser
from mres.errors import UserError, exit_on_user_error

REMEDY = "run `make clean setup`, or correct constraints.txt"


def read_pins(path: Path) -> dict[str, Requirement]:
    """The pins of a constraints file that hold for this Python, by canonical package name.

    Raises:
        UserError: for a line that is not `name==version`, with or without a marker.
    """
    pins: dict[str, Requirement] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        try:
            pin = Requirement(text)
        except InvalidRequirement as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if [specifier.operator for specifier in pin.specifier] != ["=="]:
            raise UserError(f"{path}:{number}: expected name==version, found {text!r}")
        if pin.marker is None or pin.marker.evaluate():
            pins[canonicalize_name(pin.name)] = pin
    return pins


def needed_packages(root: str, extras: frozenset[str]) -> Iterator[str]:
    """Canonical names of all that `root` with `extras` requires, directly or not, on this platform."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(root, extras)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name != root:
            yield name
        for line in distribution(name).requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))


def check(pins: dict[str, Requirement], extras: frozenset[str]) -> int:
    """Compares what is installed with `pins`; returns the number of packages that agree.

    Raises:
        UserError: listing every package that is missing, has no pin, or is of another version than its pin.
    """
    wrong: list[str] = []
    names = sorted(set(needed_packages("mres", extras)))
    for name in names:
        pin, installed = pins.get(name), version(name)
        if pin is None:
            wrong.append(f"{name} {installed} has no pin")
        elif not pin.specifier.contains(installed, prereleases=True):
            wrong.append(f"{name} {installed} is not the pinned {pin.specifier}")
    if wrong:
        raise UserError(f"the environment differs from the pins: {'; '.join(wrong)}; {REMEDY}")
    return len(names)


@exit_on_user_error
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("constraints", type=Path, help="the file of pins")
    parser.add_argument("--extra", action="append", default=None, help="an extra of setup.py (default: all)")
    args = parser.parse_args()
    try:
        count = check(read_pins(args.constraints), frozenset(args.extra or ["all"]))
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is needed and not installed; {REMEDY}") from None
    print(f"{count} packages as pinned in {args.constraints}")


if __name__ == "__main__":
    raise SystemExit(main())
