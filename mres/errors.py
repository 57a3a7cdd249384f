"""What a user is told when something that they gave is wrong."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one message that names what, where, the allowed values and the remedy. Exit code 2, no traceback."""


def exit_on_user_error(main: Callable[[], int | None]) -> Callable[[], int]:
    """Wraps a command's `main`: a `UserError` becomes one line on stderr and exit code 2; Ctrl-C becomes 130.

    Further ranks of a distributed job stay silent about an error that rank 0 reports as well.
    """

    @functools.wraps(main)
    def wrapped() -> int:
        try:
            return main() or 0
        except UserError as error:
            if os.environ.get("RANK", "0") == "0" or getattr(error, "all_ranks", False):
                print(f"error: {error}", file=sys.stderr, flush=True)
            return 2
        except BrokenPipeError:  # `mres ... | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130

    return wrapped
