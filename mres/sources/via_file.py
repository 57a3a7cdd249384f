"""VIA's JSON: its images, their regions, and which of these' attributes is the label."""

from typing import Any

from mres.errors import UserError, near
from mres.sources.other_json import what_it_is
from mres.sources.reading import JsonFile


def entries_of(file: JsonFile) -> list[dict[str, Any]]:
    value = file.value
    if isinstance(value, dict):
        value = value.get("_via_img_metadata", value)
        if (
            isinstance(value, dict)
            and value
            and all(isinstance(e, dict) and isinstance(e.get("filename"), str) for e in value.values())
        ):
            return list(value.values())
    found = what_it_is(file.value)
    raise UserError(
        f"'{file.path}' is not JSON of VIA 1 or 2: expected {{name: {{'filename', 'regions'}}}}, or a project with that "
        f"under '_via_img_metadata' (VIA 3 has another form){'' if '`via`' in found else found}"
    )


def regions_of(entry: dict[str, Any]) -> list[Any]:
    regions = entry.get("regions") or []
    return list(regions.values()) if isinstance(regions, dict) else regions if isinstance(regions, list) else [regions]


def label_attribute(file: JsonFile, entries: list[dict[str, Any]], label: str | None) -> str:
    found = [
        region.get("region_attributes") for entry in entries for region in regions_of(entry) if isinstance(region, dict)
    ]
    names = sorted({name for attributes in found if isinstance(attributes, dict) for name in attributes})
    if not names:
        raise UserError(f"'{file.path}' has no region with an attribute that could say what it is")
    if label is None and len(names) > 1:
        raise UserError(
            f"'{file.path}': regions have the attributes {', '.join(names)}; say which is the label (--label)"
        )
    if label is not None and label not in names:
        raise UserError(f"'{file.path}': no region has the attribute {label!r} (--label); {near(label, names)}")
    return label or names[0]
