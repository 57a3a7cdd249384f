"""The contact sheet: typical images, two objects and two parts each; refused where there are no masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mres.errors import UserError
from mres.evaluate.picture import _typical, draw_picture
from mres.evaluate.results import ExpressionResult, read_results
from mres.shards.reader import ShardSet


def test_rows_are_images_near_the_median_with_two_of_each_granularity(made_run: tuple[Path, ShardSet]) -> None:
    results = read_results(made_run[0])[1]
    rows = _typical(results)
    assert [[r.granularity for r in row] for row in rows] == [["object", "object", "part", "part"]] * 3
    assert all(len({r.image_id for r in row}) == 1 and len({r.target_id for r in row}) == 4 for row in rows)
    means = {row[0].image_id: np.mean([r.iou for r in results if r.image_id == row[0].image_id]) for row in rows}
    everywhere = [np.mean([r.iou for r in results if r.image_id == i]) for i in {r.image_id for r in results}]
    assert all(np.percentile(everywhere, 20) < mean < np.percentile(everywhere, 80) for mean in means.values())


def test_the_picture_has_three_rows_of_four(made_run: tuple[Path, ShardSet], tmp_path: Path) -> None:
    draw_picture(read_results(made_run[0])[1], made_run[1], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 4 * 250
        assert picture.height > 3 * 250
        assert np.asarray(picture).std() > 20


def test_results_without_masks_are_refused(made_run: tuple[Path, ShardSet], tmp_path: Path) -> None:
    bare: list[ExpressionResult] = [replace(r, prediction=None) for r in read_results(made_run[0])[1]]
    with pytest.raises(UserError, match="save_masks=true"):
        draw_picture(bare, made_run[1], tmp_path / "picture.png")
