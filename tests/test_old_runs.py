"""What was written before models were data (commit ffdfd40) goes on: its checkpoint resumes, its export loads.

tests/golden/run_before_specs.zip holds shards, a run's folder with the checkpoint of step 3 of 6, the metrics of the same
run undisturbed, the export of its last weights, and the logits that these gave then.
"""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import tiny_run
import torch
from tiny_data import make_record

import mres


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with ZipFile(Path(__file__).parent / "golden" / "run_before_specs.zip") as archive:
        archive.extractall(folder)
    return folder


def test_a_run_of_before_goes_on_as_it_did_then(old: Path) -> None:
    done = tiny_run.run(tiny_run.TRAIN, ["--config", "config.yaml", "run.name=half", "checkpoint.every=3"], old)
    assert done.codes == [0], done.output
    assert "going on at step 3" in done.output
    now, then = tiny_run.losses(old / "half"), tiny_run.losses(old / "whole")
    for one, other in zip(now, then, strict=True):  # that was on another machine, which may round otherwise
        assert one == pytest.approx(other, rel=1e-5)


def test_an_export_of_before_computes_the_same(old: Path) -> None:
    segmenter = mres.load(old / "exported")
    question = segmenter.question(make_record(0).image, ["the red box", "the top of the blue box"])
    with torch.no_grad():
        logits_Khh = segmenter.task.logits(segmenter.model, question.image_1CSS, question.text_KT[None])[0]
    np.testing.assert_allclose(logits_Khh.numpy(), np.load(old / "logits_Khh.npy"), rtol=0, atol=1e-5)
