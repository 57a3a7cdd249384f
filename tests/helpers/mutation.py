"""What an enemy, a broken disk or a hasty script makes of good files: bytes and values, changed by a seed."""

import copy
import json
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.5, 1e308)
_NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"), None, True, False, [], {}, [[]], "", "0", "1e9", "-1")
_TEXTS = ("\ud800", "a\0b", "../../etc/passwd", "/dev/zero", "a" * 5000, "\u202e\x1b[2J", "<b>", "\ufeff", "é", "None")


def odd_value(random: Random) -> Any:
    """A value that is not expected anywhere."""
    kind = random.randrange(5)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(_NOT_NUMBERS)
    if kind == 2:
        return random.choice(_TEXTS)
    if kind == 3:
        return [random.choice(NUMBERS) for _ in range(random.randrange(40))]
    value: Any = random.choice(NUMBERS)
    for _ in range(random.choice((1, 3, 60, 200))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def changed_value(value: Any, random: Random) -> Any:
    """A copy of a JSON value, of which one to three places were changed, taken away or doubled."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        holder, key = _place(value, random)
        if holder is None:
            return odd_value(random)
        what = random.randrange(4)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == 2 and isinstance(holder, dict):
            holder[random.choice(("x", "id", "", str(key) + "s"))] = holder[key]
        else:
            holder[key] = odd_value(random)
    return value


def _place(value: Any, random: Random) -> tuple[Any, Any]:
    """A holder and a key in it, anywhere in the value."""
    holder, key = None, None
    while isinstance(value, dict | list) and value:
        holder = value
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        value = value[key]
        if random.random() < 0.2:
            break
    return holder, key


def changed_bytes(content: bytes, random: Random) -> bytes:
    """Bytes of which some were flipped, cut, doubled, moved, or replaced by extreme numbers."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        at, length = random.randrange(len(changed) + 1), random.choice((1, 2, 4, 8, 40))
        what = random.randrange(7)
        if what == 0:
            changed = changed[:at] or bytearray(1)
        elif what == 1:
            changed[at : at + length] = changed[at : at + length] * 2
        elif what == 2:
            changed[at : at + length] = b""
        elif what == 3:
            changed[at : at + length] = random.randbytes(length)
        elif what == 4:
            number = random.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 30))
            changed[at : at + 4] = number.to_bytes(4, random.choice(("little", "big")))
        elif what == 5:
            other = random.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
        elif at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        if not changed:
            changed = bytearray(1)
    return bytes(changed)


def changed_json(content: bytes, random: Random) -> bytes:
    """A JSON text, changed as a value mostly, else as bytes."""
    if random.random() < 0.25:
        return changed_bytes(content, random)
    return json.dumps(changed_value(json.loads(content), random)).encode()
