"""What mres writes, with a fault at every system call that changes files: killed there, half a write, a full disk, an error.

`python faulty_disk.py SHARED_LIBRARY RUN FOLDER NAME=STRIDE …`, preloaded with the library made of faulty_disk.c; prints what
went wrong as JSON. With a stride of 1 every call has each of the four faults; else one of so many has one, in turn, and the
process is killed at every call that makes, renames or removes a name. One process has the imports behind it, and everything is
done in forks of it.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

KILLED, TORN, FULL, ERROR = MODES = ("k", "t", "f", "e")


def build(out: Path, run: Path, *, new: bool) -> None:
    from tiny_data import make_record

    from mres.shards.writer import WriteOptions, write_shards
    from mres.sources.source import RecordSource

    records = [make_record(i + 10 * new) for i in range(3)]
    write_shards(RecordSource.of(records, {"format": "tiny", "new": new}, "tiny"), out, WriteOptions(2, overwrite=True))


def convert(out: Path, run: Path, *, new: bool) -> None:
    from mres.convert.convert import convert

    convert(_checkpoint(run, new), out, "safetensors", overwrite=True)


def export(out: Path, run: Path, *, new: bool) -> None:
    from mres.export.folder import export

    list(export(_checkpoint(run, new), out, overwrite=True))


def evaluate(out: Path, run: Path, *, new: bool) -> None:
    from mres.evaluate.results import ExpressionResult, read_results, summarise, write_results

    lines = [ExpressionResult(f"e{i}", "im", "o0", "object", "car", "name", "the car", 5 + new, 10) for i in range(300)]
    out.mkdir(exist_ok=True)
    write_results(out, lines, summarise(lines, threshold=0.5, checkpoint="c", data={"split": "val"}))
    read_results(out)


def predict(out: Path, run: Path, *, new: bool) -> None:
    import numpy as np

    from mres.evaluate.drawn_file import write_drawn

    out.mkdir(exist_ok=True)
    write_drawn({out / name: np.full((30, 40), 100 * new, np.uint8) for name in ("a.png", "a-mask-1.png")})


def start(out: Path, run: Path, *, new: bool) -> None:
    """A run that goes on at step 5, and makes it."""
    from mres.config import load_config
    from mres.run_folder import RunLog, write_start

    os.chdir(out.parent)
    write_start(load_config(None, ["run.dir=.", "run.name=out", f"run.seed={int(new)}"]), {"new": new})
    log = RunLog(out, enabled=True)
    log.rewind(5)
    for step in range(6, 8) if new else range(1, 9):
        log.append("metrics.jsonl", {"step": step, "new": new and step > 5})


def save(out: Path, run: Path, *, new: bool) -> None:
    from saving import save_all

    if not new or not (out / "step-00000002").exists():
        save_all(out, [2 if new else 1])


COMMANDS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (build, convert, export, evaluate, predict, start, save)
}
# What appears as a whole; of the others, every file does.
_WHOLE = {"build", "convert", "export"}


def _checkpoint(run: Path, new: bool) -> Path:
    return run / "checkpoints" / f"step-{1 + new:08d}"


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Trial:
    """One command, its undisturbed outcomes, and what faults leave."""

    def __init__(self, name: str, library: ctypes.CDLL, run: Path, folder: Path) -> None:
        self.name, self._library, self._run, self._folder = name, library, run, folder
        self._command = COMMANDS[name]
        self._said = folder / "said.txt"
        self._initial, self._new = folder / "initial", folder / "new"
        for place, steps in ((self._initial, (False,)), (self._new, (False, True))):
            place.mkdir(parents=True)
            for new in steps:
                if name == "save":  # it opens a process group
                    assert self._fork(place, new=new) == 0, self._said.read_text()
                else:  # here, once: what it imports and keeps, forks have
                    self._command(place / "out", run, new=new)
        self.old, self.new = tree(self._initial / "out"), tree(self._new / "out")

    def _fork(self, work: Path, *, new: bool = True, at: int = 0, mode: str = KILLED, counting: bool = False) -> int:
        """Runs the command below `work`; its exit code (2: it told the user), or minus the signal."""
        pid = os.fork()
        if pid == 0:
            said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1), os.dup2(said, 2)
            signal.alarm(120)
            if at or counting:
                self._library.faults_arm(str(work).encode(), at, mode.encode())
            code = self._exit_code(work / "out", new=new)
            if counting:
                calls = range(1, self._library.faults_seen() + 1)
                (self._folder / "calls").write_text(json.dumps([self._library.faults_of_names(n) for n in calls]))
            sys.stderr.flush()
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _exit_code(self, out: Path, *, new: bool) -> int:
        from mres.errors import exit_on_user_error

        try:
            return exit_on_user_error(lambda: self._command(out, self._run, new=new))()
        except BaseException:
            traceback.print_exc()
            return 1

    def _work(self) -> Path:
        work = self._folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(self._initial, work))

    def faults(self, stride: int) -> list[tuple[int, str]]:
        """Which calls fail, and how: see this file's head."""
        assert self._fork(self._work(), counting=True) == 0, self._said.read_text()
        of_names = dict(enumerate(json.loads((self._folder / "calls").read_text()), start=1))
        self.calls = len(of_names)
        if stride == 1:
            return [(at, mode) for at in of_names for mode in MODES]
        killed = {(at, KILLED) for at, is_name in of_names.items() if is_name}
        return sorted(killed | {(at, MODES[at % 4]) for at in range(1, self.calls + 1, stride)})

    def problem(self, at: int, mode: str) -> str:
        """What is wrong after the fault, or after the same command once more; "" if nothing is."""
        work = self._work()
        code = self._fork(work, at=at, mode=mode)
        said = self._said.read_text()
        if code not in ((-signal.SIGKILL, 0) if mode in (KILLED, TORN) else (0, 2)):
            return f"exit code {code}: {said[-600:]}"
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if code == 2 and not (len(errors) == 1 and "/" in errors[0] and "out" in errors[0]):
            return f"not one message with a path: {said[-600:]}"
        if code == 0 and self.name != "save" and tree(work / "out") != self.new:
            return "it seemed to succeed"
        if wrong := self._wrong(work / "out"):
            return wrong
        code = self._fork(work)
        if code != 0:
            return f"the next one ended with {code}: {self._said.read_text()[-600:]}"
        if self.name == "save":
            return self._wrong(work / "out", steps=(2,))
        left = sorted(path.name for path in work.iterdir())
        return "" if tree(work / "out") == self.new and left == ["out"] else f"the next one made something else: {left}"

    def _wrong(self, out: Path, *, steps: tuple[int, ...] = (1, 2)) -> str:
        if self.name == "save":
            from mres.checkpoint.store import newest_sound

            found = newest_sound(out)
            return "" if found is not None and found.step in steps else f"the newest sound checkpoint is {found}"
        found = tree(out)
        if self.name in _WHOLE:
            return "" if found in (self.old, self.new) else f"neither old nor new: {sorted(found)}"
        names = self.old.keys() | self.new.keys()
        torn = [n for n in names if n != "metrics.jsonl" and found.get(n) not in (self.old.get(n), self.new.get(n))]
        if self.name == "start":
            lines = (out / "metrics.jsonl").read_bytes().splitlines()[:5]
            if [json.loads(line)["step"] for line in lines] != [1, 2, 3, 4, 5]:
                torn.append("metrics.jsonl")
        if self.name == "evaluate":
            from mres.evaluate.results import read_results

            read_results(out)
        return f"half written: {torn}" if torn else ""


def main() -> None:
    path, run, folder, *chosen = sys.argv[1:]
    import torch.distributed.checkpoint  # noqa: F401
    import webdataset  # noqa: F401

    import mres.checkpoint.saver
    import mres.evaluate.drawn_file
    import mres.export.card
    import mres.export.folder
    import mres.export.origin
    import mres.model.task
    import mres.parallel.factory
    import mres.pretrained.tokenizer_file  # noqa: F401

    library = ctypes.CDLL(path)
    library.faults_seen.restype = ctypes.c_long
    library.faults_of_names.argtypes = [ctypes.c_long]
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_char]
    result = {}
    for name, stride in (word.split("=") for word in chosen):
        trial = Trial(name, library, Path(run), Path(folder, name))
        faults = trial.faults(int(stride))
        problems = [f"{mode} at {at}: {problem}" for at, mode in faults if (problem := trial.problem(at, mode))]
        result[name] = {"calls": trial.calls, "faults": len(faults), "problems": problems}
        print(name, result[name], file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
