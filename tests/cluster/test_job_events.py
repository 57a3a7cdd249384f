"""A run's jobs.jsonl, and what is read from it."""

from pathlib import Path

from mres.cluster.jobs import JOBS, Event, cancel_is_asked, job_name, newest_step, note, read


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    events = [
        Event("7", "submitted", time=1.5),
        Event(
            "7", "requeued", restart=1, nodes="n[0-1]", step=9, reason="a 'β'", excluded=("n3",), exit_code=75, time=2.5
        ),
    ]
    for event in events:
        note(tmp_path, event)
    assert read(tmp_path) == events


def test_a_line_that_was_cut_off_or_is_of_a_later_version_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / JOBS).write_text('{"time": 1.0, "job": "7", "event": "started", "mood": "good"}\n{"time": 2.0, "jo')
    assert read(tmp_path) == [Event("7", "started", time=1.0)]
    note(tmp_path, Event("7", "ended", time=3.0))
    assert [event.event for event in read(tmp_path)] == ["started", "ended"]


def test_a_cancellation_counts_for_the_start_that_it_was_asked_of(tmp_path: Path) -> None:
    for name, asked in (("started", False), ("cancelling", True), ("cancelled", True), ("started", False)):
        note(tmp_path, Event("7", name))  # type: ignore[arg-type]
        assert cancel_is_asked(tmp_path, "7") is asked
    assert not cancel_is_asked(tmp_path, "8")


def test_the_newest_step_is_that_of_a_whole_checkpoint(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step-00000009", "step-00000012", "step-00000012.superseded", "step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if not name.endswith("20"):
            (tmp_path / "checkpoints" / name / "MANIFEST.json").touch()
    assert newest_step(tmp_path) == 12


def test_a_member_of_an_array_is_called_as_slurm_does() -> None:
    assert job_name({"SLURM_JOB_ID": "18"}) == "18"
    assert job_name({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0"}) == "17_0"
