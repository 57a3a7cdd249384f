"""What a batch script would start."""

import subprocess


def command_of(script: str) -> list[str]:
    """The words of its last command, which only prints them."""
    done = subprocess.run(
        ["bash"], input="exec() { printf '%s\\0' \"$@\"; }\n" + script, text=True, capture_output=True, check=True
    )
    return done.stdout.split("\0")[:-1]
