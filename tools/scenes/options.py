"""What a user may choose about procedural scenes."""

from dataclasses import dataclass

from mres.errors import UserError


@dataclass(frozen=True)
class SceneOptions:
    """The options of a procedural data set; every image of the set is drawn with the same ones.

    Attributes:
        image_size: side of the square images in pixels.
        min_objects, max_objects: how many objects an image has at least and at most.
        relational_share: fraction of the expressions (objects and parts) that refer by position, size or relation, on
            average over many images. A larger share also makes rivals (several objects of one category) more frequent.

    Raises:
        UserError: for a value outside its range.
    """

    image_size: int = 128
    min_objects: int = 2
    max_objects: int = 4
    relational_share: float = 0.25

    def __post_init__(self) -> None:
        if not 64 <= self.image_size <= 1024:
            raise UserError(f"scenes: image_size={self.image_size}; allowed: 64 to 1024 pixels")
        if not 2 <= self.min_objects <= self.max_objects <= 6:
            raise UserError(
                f"scenes: min_objects={self.min_objects}, max_objects={self.max_objects}; allowed: 2 <= min <= max <= 6"
            )
        if not 0 <= self.relational_share <= 0.7:
            raise UserError(
                f"scenes: relational_share={self.relational_share}; allowed: 0 to 0.7 (some objects have no rival)"
            )
