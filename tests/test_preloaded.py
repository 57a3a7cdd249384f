"""The processes that tests fork have their imports behind them: nothing else would tell but the clock."""

import sys

from preloaded import PRELOAD

from mres.testing import run_distributed


def absent() -> list[str]:
    return [name for name in PRELOAD if name not in sys.modules]


def test_processes_start_with_their_imports_done() -> None:
    assert run_distributed(absent, 1) == [[]]
