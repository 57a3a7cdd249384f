"""The values of options as texts: what is handed on to sbatch, to srun and into the tasks' environment."""

import re
from collections.abc import Mapping, Sequence

from mres.credentials import names_secret, redacted
from mres.errors import UserError

SLURM_OPTIONS = {
    "partition": "partition of the cluster",
    "account": "account to charge",
    "qos": "quality of service",
    "mem": "memory a node, such as 480G",
    "constraint": "features that the nodes must have",
    "exclude": "nodes to avoid",
}
_REQUEUEING = "submit.py sets {} itself, since requeueing depends on it"
_RANKS = "submit.py sets {} itself, since the ranks' numbers depend on it"
# What submit.py sets itself; given a second time, one of the two would silently win.
_OF_SBATCH = {
    **{name: f"use --{name} instead" for name in (*SLURM_OPTIONS, "nodes", "gpus-per-node", "time", "cpus-per-task")},
    "ntasks-per-node": "use --tasks-per-node instead",
    "array": "use --sweep instead",
    "job-name": "use the override run.name=... instead",
    "output": "use the override run.dir=... instead",
    "error": "use the override run.dir=... instead",
    "signal": "use --signal-delay instead",
    **dict.fromkeys(("requeue", "no-requeue", "open-mode", "ntasks", "gpus", "chdir"), _REQUEUEING),
}
_OF_SRUN = {
    "nodes": "use --nodes instead",
    "ntasks-per-node": "use --tasks-per-node instead",
    "cpus-per-task": "use --cpus-per-task instead",
    "distribution": "use --distribution instead",
    "cpu-bind": "use --cpu-bind instead",
    "container-image": "use --container-image instead",
    "container-mounts": "use --container-mounts instead",
    "export": "use --env instead",
    "output": "use the override run.dir=... instead",
    "error": "use the override run.dir=... instead",
    **dict.fromkeys(("kill-on-bad-exit", "open-mode", "signal"), _REQUEUEING),
    **dict.fromkeys(("ntasks", "nodelist", "relative", "multi-prog"), _RANKS),
}
_OWN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def parse_directives(options: Sequence[str]) -> dict[str, str | bool]:
    """sbatch options given as `key=value` or, for a flag, `key`.

    Raises:
        UserError: for a key that is given twice or that submit.py itself sets, naming the option to use instead.
    """
    return _pairs("--sbatch", options, _OF_SBATCH, "reservation=gpu or exclusive")


def parse_srun_args(options: Sequence[str]) -> tuple[str, ...]:
    """srun's options given as `key=value` or `key`, with or without dashes before it; as words for srun.

    Raises:
        UserError: as `parse_directives`.
    """
    pairs = _pairs("--srun-arg", options, _OF_SRUN, "network=sn_all or unbuffered")
    return tuple(f"--{key}" if value is True else f"--{key}={value}" for key, value in pairs.items())


def _pairs(option: str, given: Sequence[str], own: Mapping[str, str], example: str) -> dict[str, str | bool]:
    pairs: dict[str, str | bool] = {}
    for text in given:
        name, equals, value = text.partition("=")
        key = sbatch_key(name)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or (equals and not value) or "\n" in value:
            raise UserError(f"{option} {text!r}: expected key=value or key, such as {example}")
        if key in own:
            raise UserError(f"{option} {text}: {own[key].format(key)}")
        if key in pairs:
            raise UserError(f"{option} {key} is given twice")
        if redacted(text) != text:
            raise UserError(f"{option} {text}: it has credentials in it, which anyone can read in the queue")
        pairs[key] = value if equals else True
    return pairs


def sbatch_key(name: str) -> str:
    """An option's name as SLURM spells it, without dashes before it."""
    return name.lstrip("-").replace("_", "-")


def told_command(words: Sequence[str]) -> list[str]:
    """A command line of submit.py without the credentials in it, as it may be kept."""
    told, before = [], ""
    for word in words:
        head = "--env=" if word.startswith("--env=") else ""
        name, equals, _ = word.removeprefix(head).partition("=")
        is_private = (head or before == "--env") and equals and names_secret(name)
        told.append(f"{head}{name}=…" if is_private else redacted(word))
        before = word
    return told


def parse_env(given: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Variables for the tasks, given as `NAME=VALUE`, or `NAME` where the value is that of `environ`.

    Returns:
        Those that the job's script may tell, and those that it may not: credentials, and what is only named.

    Raises:
        UserError: for what is no variable, is given twice, is not there to be taken, or is the launcher's to set.
    """
    told: dict[str, str] = {}
    private: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {redacted(text)!r}: expected NAME=VALUE, or NAME for one that is set here")
        if name in _OWN_VARIABLES or name.startswith("SLURM_"):
            raise UserError(f"--env {name}: SLURM gives each task its own value; remove it")
        if name in told or name in private:
            raise UserError(f"--env {name} is given twice")
        if not equals and name not in environ:
            raise UserError(f"--env {name} is not set here; export it, or give a value: --env {name}=VALUE")
        if "\0" in value:
            raise UserError(f"--env {name}: its value has a character that no variable can hold")
        is_told = equals and not names_secret(name) and redacted(value) == value
        (told if is_told else private)[name] = value if equals else environ[name]
    return told, private


_ASSIGNED = re.compile(r"\b([A-Za-z_]\w*)=(?![$\s])")


def check_setup(lines: Sequence[str]) -> tuple[str, ...]:
    """Shell lines that the job's script runs first.

    Raises:
        UserError: one is empty or has several lines; one has a credential in it, since the script is kept with the run.
    """
    for line in lines:
        if not line.strip() or "\n" in line:
            raise UserError(
                f"--setup {line!r}: expected one line of shell, such as 'module load cuda/12.4'; repeat --setup"
            )
        secret = next((name for name in _ASSIGNED.findall(line) if names_secret(name)), None)
        if secret is not None:
            raise UserError(
                f"--setup sets {secret}, and the script is kept with the run; export it here and give --env {secret}"
            )
        if redacted(line) != line:
            raise UserError(f"--setup {line!r} has credentials in it, and the script is kept with the run; use --env")
    return tuple(lines)
