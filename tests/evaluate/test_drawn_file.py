"""What a command draws replaces, at a name that the user did not give, only what mres has drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mres.errors import UserError
from mres.evaluate.drawn_file import check_drawn, write_drawn
from mres.evaluate.predict import predict

MASK = np.eye(5, dtype=np.uint8) * 255


def test_masks_drawn_before_are_replaced(tmp_path: Path) -> None:
    mask = tmp_path / "overlay-mask-1.png"
    check_drawn(mask, "--out", named=False)
    write_drawn({mask: MASK})
    check_drawn(mask, "--out", named=False)
    with Image.open(mask) as drawn:
        assert drawn.mode == "L"
        assert np.array_equal(np.asarray(drawn), MASK)


@pytest.mark.parametrize("content", [b"notes", b"", None])
def test_another_file_at_a_masks_name_is_left_and_named(content: bytes | None, tmp_path: Path) -> None:
    mask, photo = tmp_path / "overlay-mask-2.png", tmp_path / "photo.png"
    Image.fromarray(MASK).save(photo)
    mask.write_bytes(photo.read_bytes() if content is None else content)
    before = mask.read_bytes()
    with pytest.raises(UserError, match=r"--out.*overlay-mask-2\.png"):
        list(predict(tmp_path / "nowhere", photo, ["a", "b"], tmp_path / "overlay.png", None))
    assert mask.read_bytes() == before
    check_drawn(mask, "--out")  # named by the user, it is replaced
