"""Which tool has written a JSON file that is not of the format asked for, and which format reads it."""

from typing import Any


def what_it_is(value: Any) -> str:
    """A clause for the end of a message; "" for JSON of no tool that is known."""
    if not isinstance(value, dict):
        return ""
    keys = value.keys()
    if isinstance(value.get("images"), list) and keys & {"annotations", "categories"}:
        return "; it is COCO's format, which `instances` and `coco` read"
    if isinstance(value.get("shapes"), list) and keys & {"imagePath", "imageData", "imageHeight"}:
        return "; it is LabelMe's format, which `labelme` reads"
    if isinstance(value.get("objects"), list) and "size" in keys:
        return "; it is Supervisely's format, which `supervisely` reads"
    if "_via_img_metadata" in keys or any(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in value.values()
    ):
        return "; it is VIA's format, which `via` reads"
    return ""
