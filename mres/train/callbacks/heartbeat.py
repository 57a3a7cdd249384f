"""Where the training thread is, for `tools/doctor.py` and for the other ranks."""

from mres.supervise.heartbeat import Heartbeat
from mres.train.callback import Callback


class HeartbeatCallback(Callback):
    """Tells this rank's heartbeat of every phase."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def phase(self, name: str, step: int) -> None:
        self._heartbeat.at(name, step)
