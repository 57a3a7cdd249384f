"""A claim: a ratio or a size that was measured, and what it must reach."""

from typing import Any, Literal


def claim(figure: float, sign: Literal[">=", "<="], bound: float) -> dict[str, Any]:
    """What benches return under "claims": the figure, its target and whether it is met."""
    met = figure >= bound if sign == ">=" else figure <= bound
    return {"figure": figure, "target": f"{sign} {bound:g}", "met": met}
