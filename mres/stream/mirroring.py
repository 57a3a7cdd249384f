"""Says of a set what training may mirror: how many expressions swap their sides, forbid it or have nothing to do with it."""

import json
from collections import Counter, defaultdict
from typing import Any

from mres.io.progress import track
from mres.pixels.text_flip import judge, may_flip
from mres.shards.reader import ShardSet

EXAMPLES = 5


def describe(location: str) -> dict[str, Any]:
    """`expressions` by judgement, `forbids` and `examples` by the reason, `images_that_stay` with all their expressions drawn.

    Raises:
        UserError: as `ShardSet` does; a record that cannot be read.
    """
    shards = ShardSet(location)
    kinds, reasons = Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = defaultdict(list)
    stay = 0
    for index in track(range(len(shards)), len(shards), f"reading {location}"):
        record = shards.read(index)
        texts = [target.expressions[i].text for target, i in record.pairs()]
        stay += not may_flip(texts, texts)
        for text in texts:
            kind, why = judge(text)
            kinds[kind] += 1
            if kind == "forbids":
                reasons[why] += 1
                if len(examples[why]) < EXAMPLES and text not in examples[why]:
                    examples[why].append(text)
    return {
        "expressions": {kind: kinds[kind] for kind in ("neutral", "swaps", "forbids", "unknown")},
        "forbids": dict(reasons.most_common()),
        "examples": examples,
        "images": len(shards),
        "images_that_stay": stay,
    }


def show(location: str, *, as_json: bool) -> int:
    """Prints the description."""
    value = describe(location)
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return 0
    numbers = value["expressions"]
    print(f"expressions that have no side: {numbers['neutral']:,}")
    print(f"whose left and right change places in a mirrored image: {numbers['swaps']:,}")
    print(f"without a known word, taken for English where another of the image is: {numbers['unknown']:,}")
    print(f"that forbid mirroring their image: {numbers['forbids']:,}")
    for why, number in value["forbids"].items():
        print(f"  {why}: {number:,}, such as {'; '.join(map(repr, value['examples'][why]))}")
    print(
        f"images that stay when all their expressions are drawn: {value['images_that_stay']:,} of {value['images']:,}"
    )
    return 0
