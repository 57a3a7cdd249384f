"""tools/predict.py on a really trained (if tiny) run: files, sizes, and what bad input gets."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from commands import command
from PIL import Image


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    config = tiny_run.write_config(folder, tiny_shards)
    overrides = ["train.steps=2", "train.trace_batches=false", f"run.dir={folder}", "run.name=tiny"]
    done = tiny_run.run(tiny_run.TRAIN, ["--config", str(config), *overrides], folder)
    assert done.codes == [0], done.output
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 91, 3), dtype=np.uint8)).save(folder / "photo.png")
    return folder


def predict(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("tools/predict.py", *arguments, folder=folder)


@pytest.mark.slow
def test_masks_have_the_images_size_and_the_overlay_is_written(trained: Path) -> None:
    texts = ["--text", "the red car", "--text", "left wheel of the red car"]
    done = predict(trained, "--checkpoint", "tiny", "--image", "photo.png", "--out", "found.png", *texts)
    assert done.returncode == 0, done.stderr
    for number in (1, 2):
        with Image.open(trained / f"found-mask-{number}.png") as mask:
            assert mask.size == (91, 37)
            assert set(np.unique(np.asarray(mask))) <= {0, 255}
    with Image.open(trained / "found.png") as overlay:
        assert overlay.width > 2 * 91
    assert "left wheel of the red car" in done.stdout


@pytest.mark.slow
def test_the_image_is_never_replaced_under_whatever_name(trained: Path) -> None:
    photo = (trained / "photo.png").read_bytes()
    (trained / "x-mask-2.png").write_bytes(photo)
    (trained / "hard.png").hardlink_to(trained / "photo.png")
    (trained / "link.png").symlink_to("photo.png")
    before = {path.name: path.read_bytes() for path in trained.glob("*.png")}
    texts = ["--text", "a", "--text", "b"]
    for image, out in (
        ("photo.png", "photo.png"), ("photo.png", "hard.png"), ("photo.png", "link.png"), ("link.png", "./photo.png"),
        ("x-mask-2.png", "x.png"), ("x-mask-2.png", "x.jpg"),
    ):  # fmt: skip
        done = predict(trained, "--checkpoint", "nowhere", "--image", image, "--out", out, *texts)
        assert done.returncode == 2, done.stderr
        assert "would replace" in done.stderr
        assert image in done.stderr
        assert {path.name: path.read_bytes() for path in trained.glob("*.png")} == before
    assert (trained / "link.png").is_symlink()


@pytest.mark.slow
def test_all_files_or_none(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "o-mask-2.png.part").mkdir()  # nothing can be written there
    texts = ["--text", "a", "--text", "b"]
    given = ["--checkpoint", "tiny", "--image", "photo.png", "--out", str(tmp_path / "o.png"), *texts]
    done = predict(trained, *given)
    assert done.returncode == 2, done.stderr
    assert f"'{tmp_path}/o-mask-2.png'; name a place that can be written to" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["o-mask-2.png.part"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "nowhere", "--image", "photo.png", "--text", "a"], "no such checkpoint or run: 'nowhere'"),
        (["--checkpoint", "tiny", "--image", "none.jpg", "--text", "a"], "no image at 'none.jpg'"),
        (["--checkpoint", "tiny", "--image", "tiny.yaml", "--text", "a"], "'tiny.yaml' is of no format"),
        (["--checkpoint", "tiny", "--image", "photo.png", "--text", " "], "--text is empty"),
        (["--checkpoint", "tiny", "--image", "photo.png", "--text", "a", "--out", "x.txt"], "must end in .png"),
        (["--checkpoint", "tiny", "--image", "photo.png", "--text", "a", "--threshold", "2"], "between 0 and 1"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_one_message_and_exit_code_2(trained: Path, arguments: list[str], said: str) -> None:
    done = predict(trained, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
