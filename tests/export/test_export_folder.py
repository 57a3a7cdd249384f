"""tools/export.py: a folder that is enough by itself, a card that tells what is known, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from huggingface_hub import ModelCard
from PIL import Image
from trained_run import Trained

from mres.config import load_config
from mres.errors import UserError
from mres.evaluate.predict import predict
from mres.evaluate.segmenter import load
from mres.export import folder
from mres.export.folder import export
from mres.formats.folder import CheckpointError
from mres.io.files import file_sha256

pytestmark = pytest.mark.slow
TEXTS = ["the red box", "the top of the blue box"]
# The three lines of the documentation, in a process that has nothing but the folder; none of torch before they need it.
THREE_LINES = f"""
import sys
import mres

assert "torch" not in sys.modules
model = mres.load("moved")
masks = model.segment("photo.png", {TEXTS!r})

import numpy
numpy.save("masks.npy", masks)
"""


@pytest.fixture(scope="module")
def photo_HW3() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (37, 91, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    out = trained.folder / "exported" / "tiny"
    (line,) = export(trained.run, out)
    assert "step 3, figures of 1 evaluation(s) in the card" in line
    return out


def copy_of(exported: Path, folder: Path) -> Path:
    return shutil.copytree(exported, folder / "moved")


def test_a_fresh_process_with_only_the_folder_gives_the_masks_of_predict(
    trained: Trained, exported: Path, photo_HW3: np.ndarray, tmp_path: Path
) -> None:
    copy_of(exported, tmp_path)
    photo = tmp_path / "photo.png"
    Image.fromarray(photo_HW3).save(photo)
    environ = {**os.environ, "PYTHONPATH": str(tiny_run.ROOT)}
    subprocess.run([sys.executable, "-c", THREE_LINES], cwd=tmp_path, env=environ, check=True, timeout=300)
    masks_KHW = np.load(tmp_path / "masks.npy")
    assert masks_KHW.shape == (2, 37, 91)
    assert 0 < masks_KHW.mean() < 1
    list(predict(trained.run, photo, TEXTS, tmp_path / "found.png", None))
    for number, mask_HW in enumerate(masks_KHW, start=1):
        with Image.open(tmp_path / f"found-mask-{number}.png") as drawn:
            assert np.array_equal(np.asarray(drawn) > 0, mask_HW)


def test_the_card_tells_data_leaks_recipe_and_figures(trained: Trained, exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    check = trained.manifest.leakcheck
    assert check is not None
    assert check.leaks == 2
    summary = json.loads((trained.run / "results.json").read_text())
    facts = [
        trained.manifest.sha256, "**2 of 10** images", "compared with val (", "| 10 | ", summary["data"]["fingerprint"],
        "| steps | 3 |", "| strategy | single, 1 process(es) |", "4 images × up to 3 expressions", "learning rate | 0.002,",
        summary["protocol"]["precision"], summary["protocol"]["mIoU"], "It started from random weights.",
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in card] == []
    for group, label in (("object", "object"), ("part", "part"), ("object_part", "object & part")):
        figures = summary[group]
        assert f"| {label} | {figures['num']} | {figures['mIoU']:.3f} | {figures['oIoU']:.3f} |" in card
    assert str(trained.folder) not in card  # nothing of the machine


def test_hubs_read_the_cards_front_matter(trained: Trained, exported: Path) -> None:
    data = ModelCard.load(exported / "README.md").data
    assert data.library_name == "mres"
    assert data.pipeline_tag == "image-segmentation"
    figures = {(result.metric_name, result.dataset_revision): result.metric_value for result in data.eval_results}
    summary = json.loads((trained.run / "results.json").read_text())
    expected = round(summary["part"]["mIoU"], 4)
    assert figures["mIoU, part", summary["data"]["fingerprint"]] == expected


def test_a_run_starts_from_the_folder(trained: Trained, exported: Path) -> None:
    given = ["--config", str(trained.folder / "tiny.yaml"), f"run.dir={trained.folder}", "run.name=next"]
    given += ["train.steps=1", f"checkpoint.init_from={exported}"]
    done = tiny_run.run(tiny_run.TRAIN, given, trained.folder)
    assert done.codes == [0], done.output
    assert "145 of 145" in done.output
    (line,) = export(trained.folder / "next", trained.folder / "exported" / "next")
    assert "no figures in the card (the run was not evaluated)" in line
    card = (trained.folder / "exported" / "next" / "README.md").read_text(encoding="utf-8")
    assert "It started from the weights of **tiny**" in card
    assert card.count(trained.manifest.sha256) == 2


def test_weights_in_several_files_are_the_same_model(exported: Path, photo_HW3: np.ndarray, tmp_path: Path) -> None:
    (line,) = export(exported, tmp_path / "sharded", max_shard_bytes=200_000)
    assert "figures of 1 evaluation(s)" in line  # what was known goes on being known
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    models = [load(folder, device="cpu") for folder in (exported, tmp_path / "sharded")]
    first, second = (model.segment(photo_HW3, TEXTS) for model in models)
    assert np.array_equal(first, second)


def test_an_interrupted_export_goes_on_and_leaves_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mres.convert.convert.check_same", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(export(exported, out))
    monkeypatch.undo()
    assert f"kept in '{out}.incomplete'" in capsys.readouterr().err
    assert len(list(export(exported, out))) == 1
    assert "are there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_exports_into_one_place_the_second_is_refused(
    trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, finish, refused = tmp_path / "out", folder._finish, list[str]()

    def held(*given: object) -> None:
        with pytest.raises(UserError, match=f"another process is making '{out}'"):
            list(export(trained.run / "checkpoints" / "step-00000003", out, weights="ema"))
        refused.append("once")
        finish(*given)

    monkeypatch.setattr(folder, "_finish", held)
    list(export(trained.run, out))
    assert refused == ["once"]
    kinds = {json.loads((out / name).read_text())["weights"] for name in ("origin.json", "state.json")}
    assert kinds == {"model"}, "card and weights are of one export"
    with pytest.raises(UserError, match=r"would be replaced with the results in it"):
        list(export(trained.run, out, overwrite=True, results=[out]))


def test_the_moving_average_is_another_model_without_the_runs_figures(trained: Trained, exported: Path) -> None:
    (line,) = export(trained.run, trained.folder / "exported" / "ema", weights="ema")
    assert "no figures in the card (results.json in the run's folder is of the weights 'model', not of 'ema')" in line
    plain, averaged = (load(trained.folder / "exported" / name, device="cpu").model for name in ("tiny", "ema"))
    assert not np.array_equal(plain.head.kernel.weight.detach(), averaged.head.kernel.weight.detach())
    assert "moving average of the weights" in (trained.folder / "exported" / "ema" / "README.md").read_text()


def test_figures_of_weights_that_a_checkpoint_held_before_are_not_taken(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "tiny"))
    summary = json.loads((run / "results.json").read_text())
    (manifest,) = [p for p in run.glob("checkpoints/*/MANIFEST.json") if p.parent.name in summary["checkpoint"]]
    assert summary["manifest_sha256"] == file_sha256(manifest)
    assert any("figures of 1 evaluation" in line for line in export(run, tmp_path / "same"))
    (run / "results.json").write_text(json.dumps({**summary, "manifest_sha256": "0" * 64}))
    (line,) = export(run, tmp_path / "other")
    assert "no figures in the card (results.json in the run's folder is of weights that " in line


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "origin.json"])
def test_a_flipped_bit_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    path = copy_of(exported, tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load(tmp_path / "moved")


def test_the_card_may_be_edited(exported: Path, tmp_path: Path) -> None:
    folder = copy_of(exported, tmp_path)
    (folder / "README.md").write_text("license: mine")
    assert load(folder, device="cpu").config == load_config(exported / "config.yaml")


def test_figures_of_other_weights_do_not_come_into_the_card(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.run, tmp_path / "tiny")
    summary = json.loads((run / "results.json").read_text())
    summary["checkpoint"] = str(run / "checkpoints" / "step-00000002")
    (run / "results.json").write_text(json.dumps(summary))
    (line,) = export(run, tmp_path / "out")
    assert "no figures in the card (results.json in the run's folder is of " in line
    with pytest.raises(UserError, match=r"step-00000002, not of .*step-00000003; evaluate what is exported"):
        list(export(run, tmp_path / "out2", results=[run]))
    assert not (tmp_path / "out2").exists()


def test_a_set_that_is_another_one_now_is_not_described(trained: Trained, tmp_path: Path) -> None:
    run = shutil.copytree(trained.run, tmp_path / "tiny")
    environment = json.loads((run / "environment.json").read_text())
    environment["data"] = [
        {"folder": str(trained.folder / "train"), "fingerprint": "0" * 64},
        {"folder": str(tmp_path / "gone"), "fingerprint": "1" * 64},
    ]
    (run / "environment.json").write_text(json.dumps(environment))
    list(export(run, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "not known: another set lies there now | `" + "0" * 64 in card
    assert "not known: the set was not at hand" in card
    assert trained.manifest.sha256 not in card


@pytest.mark.parametrize(
    ("out", "said"), [("exported/tiny", "exists and is not empty"), ("tiny/checkpoints", "exists and is not empty")]
)
def test_nothing_that_stands_is_replaced(trained: Trained, exported: Path, out: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(export(trained.run, trained.folder / out))
    (line,) = export(trained.run, exported, overwrite=True)
    assert "model card" in line
