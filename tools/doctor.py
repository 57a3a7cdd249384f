"""What would break before a long run, and which rank of a run hangs: `python tools/doctor.py [RUN | --config C]`."""

import sys

from mres.doctor.run import main
from mres.errors import exit_on_user_error

if __name__ == "__main__":
    sys.exit(exit_on_user_error(lambda: main(sys.argv[1:]))())
