"""A signal is noted and acted on at a step's boundary; a second Ctrl-C ends at once."""

import os
import signal
from collections.abc import Iterator

import pytest

from mres.supervise import stop_request as preempt
from mres.supervise.stop_request import INTERRUPTED_EXIT, PREEMPTED_EXIT, StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    request = StopRequest()
    request.install()
    yield request
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, INTERRUPTED_EXIT),
        (signal.SIGTERM, PREEMPTED_EXIT),
        (signal.SIGQUIT, PREEMPTED_EXIT),
        (signal.SIGHUP, PREEMPTED_EXIT),
        (signal.SIGUSR2, PREEMPTED_EXIT),
    ],
)
def test_a_signal_is_only_noted(stop: StopRequest, number: signal.Signals, code: int) -> None:
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.exit_code == code
    assert (INTERRUPTED_EXIT, PREEMPTED_EXIT) == (130, 75)


def test_under_nohup_a_closed_terminal_is_nothing() -> None:
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR2)
    }
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        request = StopRequest()
        request.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not request.requested
    finally:
        for number, handler in {**before, signal.SIGHUP: hung_up}.items():
            signal.signal(number, handler)


def test_what_launchers_forward_is_not_a_second_ctrl_c(stop: StopRequest) -> None:
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop.exit_code == INTERRUPTED_EXIT, "the first one counts"


def test_a_later_second_ctrl_c_ends_at_once(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preempt, "_SECOND_CTRL_C_AFTER_S", -1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # the scheduler may repeat itself: the checkpoint goes on being written
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err.count("the last checkpoint stands") == 1
