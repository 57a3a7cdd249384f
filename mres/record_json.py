"""The JSON form of an image record (MRES JSONL), as mres writes it and reads it back; what others wrote: `record_checks.py`."""

from typing import Any

from mres.records import Expression, ImageRecord, RecordError, Rle, Target


def record_to_json(record: ImageRecord, image: str) -> dict[str, Any]:
    """The MRES JSONL object of `record`; `image` is the path under which its bytes are found."""
    return {
        "id": record.id,
        "image": image,
        "width": record.width,
        "height": record.height,
        "split": record.split,
        "source": record.source,
        "targets": [_target_to_json(target) for target in record.targets],
    }


def _target_to_json(target: Target) -> dict[str, Any]:
    value = {
        "id": target.id,
        "granularity": target.granularity,
        "category": target.category,
        "parent": target.parent,
        "box": list(target.box),
        "mask": target.mask.to_json(),
        "expressions": [_expression_to_json(expression) for expression in target.expressions],
    }
    optional = {"ref_id": target.ref_id, "ann_id": target.ann_id, "no_target": target.no_target or None}
    return {**value, **{name: field for name, field in optional.items() if field is not None}}


def _expression_to_json(expression: Expression) -> dict[str, Any]:
    value = {"text": expression.text, "kind": expression.kind}
    optional = {"sent_id": expression.sent_id, "sent_index": expression.sent_index}
    return {**value, **{name: field for name, field in optional.items() if field is not None}}


def record_as_written(value: Any, image: bytes, where: str) -> ImageRecord:
    """The record of a JSON object that `record_to_json` made of a checked record: its fields are not checked again.

    For bytes that a checksum has shown to be those that were written; thirty targets then cost microseconds, not
    milliseconds.

    Raises:
        RecordError: naming `where`, if it is none after all.
    """
    try:
        targets = tuple(
            Target(
                target["id"],
                target["granularity"],
                target["category"],
                _mask_as_written(target["mask"]),
                tuple(target["box"]),
                tuple(
                    [  # most targets and expressions have no ids: time counts
                        Expression(e["text"], e["kind"])
                        if len(e) == 2
                        else Expression(e["text"], e["kind"], e.get("sent_id"), e.get("sent_index"))
                        for e in target["expressions"]
                    ]
                ),
                target["parent"],
                *(_ids_as_written(target) if len(target) > 7 or target["category"] == "no-target" else ()),
            )
            for target in value["targets"]
        )
        size = value["width"], value["height"]
        return ImageRecord(value["id"], image, *size, value["split"], value["source"], targets)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(f"{where}: not a record of this version of mres ({error!r}); build the set again") from None


def _ids_as_written(target: Any) -> tuple[Any, Any, bool]:
    """`ref_id`, `ann_id` and `no_target`, which sets of before said by a category and a box of zeros."""
    ann_id = target.get("ann_id")
    meant_nothing = target["category"] == "no-target" and not any(target["box"])
    return (
        target.get("ref_id"),
        tuple(ann_id) if isinstance(ann_id, list) else ann_id,
        target.get("no_target", meant_nothing),
    )


def _mask_as_written(mask: Any) -> Rle:
    height, width = mask["size"]
    return Rle(height, width, mask["counts"].encode("ascii"))
