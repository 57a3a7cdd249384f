"""What the documentation says exists: links, commands and their options, config keys, error messages, sizes, metrics."""

import argparse
import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import command as run_command
from PIL import Image

from mres.cluster.sweep import make_sweep
from mres.config import Config, known_keys, load_config
from mres.model.spec import KINDS, load_spec
from mres.model.unires.config import SIZES
from mres.sources.registry import SOURCES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SCRIPT = re.compile(r"(tools|launch)/\w+\.py")
SECTIONS = "|".join(Config.model_fields)
KEY = re.compile(rf"({SECTIONS})(\.[a-z_0-9]+)+")
FILE_NAMES = re.compile(r".*\.(py|yaml|json|jsonl|pt|pt2|onnx|safetensors|weight|lock)")
FOREIGN_OPTIONS = {"--kill-on-bad-exit"}  # of srun


def pages() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@lru_cache
def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: (language, text)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(str(language), str(text)) for language, text in found]


@lru_cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """The inline code of a page; a span may go on in the next line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


# ---- links


def anchors(page: Path) -> set[str]:
    """The headings of a page as the places that links name."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages()
def test_relative_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


# ---- commands


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line of a page that runs a script of this project, as words from the script on."""
    shell = [text for language, text in blocks(page) if language in ("bash", "sh")]
    lines = [line for text in shell for line in text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(page)]:
        words = shlex.split(line, comments=True) if SCRIPT.search(line) else []
        starts = [i for i, word in enumerate(words) if SCRIPT.fullmatch(word)]
        if starts and (len(words) > 1 or line in lines):
            yield list(itertools.takewhile(lambda word: word not in ("|", "&&", ";"), words[starts[0] :]))


@lru_cache
def help_of(*words: str) -> str:
    done = run_command(*words, "--help", folder=ROOT)
    assert done.returncode == 0, f"{' '.join(words)} --help: {done.stderr}"
    return done.stdout


def subcommand_help(command: list[str]) -> str:
    """The help of a command with as many of its first words as are names of subcommands."""
    words = command[:1]
    text = help_of(*words)
    for word in command[1:]:
        choices = {name for group in re.findall(r"\{([\w,-]+)\}\s+\.\.\.", text) for name in group.split(",")}
        if word not in choices:
            break
        words.append(word)
        text = help_of(*words)
    return text


def options_in(help_text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z_-]*", help_text))


@pages()
def test_commands_exist_with_these_options(page: Path) -> None:
    for command in commands(page):
        assert (ROOT / command[0]).is_file(), command
        named = {word.partition("=")[0] for word in command[1:] if word.startswith("--")}
        assert named <= options_in(subcommand_help(command)), " ".join(command)


def test_own_data_in_three_commands(tmp_path: Path) -> None:
    """As the page has them, on the page's own record."""
    page = ROOT / "docs" / "data-format.md"
    record = json.loads(next(text for language, text in blocks(page) if language == "json"))
    image = tmp_path / "mydata" / record["image"]
    image.parent.mkdir(parents=True)
    Image.new("RGB", (record["width"], record["height"])).save(image)
    lines = [json.dumps(record | {"id": split, "split": split}) + "\n" for split in ("train", "val")]
    (tmp_path / "mydata" / "records.jsonl").write_text("".join(lines))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    *builds, train = itertools.islice(commands(page), 3)
    assert train[0] == "launch/train.py"
    for words in builds:
        done = run_command(*words, "--workers", "0", folder=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run_command(*train, "--dry-run", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "plan: 1 images with 3 expressions" in done.stdout
    done = run_command(*train, "data.expressions_per_image=16", "--dry-run", folder=tmp_path)
    assert done.returncode == 2
    assert "set data.expressions_per_image=3 or less" in done.stderr
    assert "plan" not in done.stdout


@lru_cache
def options_of_shard_commands() -> frozenset[str]:
    formats = argparse.ArgumentParser(conflict_handler="resolve")
    for source in SOURCES.values():
        source.add_arguments(formats)
    commands = [["build", "scenes"], ["build", "jsonl"], ["info"], ["verify"], ["leakcheck"], ["filter"], ["merge"]]
    helps = [formats.format_help(), *(help_of("tools/shard.py", *command) for command in commands)]
    return frozenset().union(*map(options_in, helps))


@pages()
def test_scripts_and_options_named_in_passing_exist(page: Path) -> None:
    known = FOREIGN_OPTIONS | options_of_shard_commands()
    for script in sorted({*ROOT.glob("launch/*.py"), *ROOT.glob("tools/*.py")}):
        known |= options_in(help_of(str(script.relative_to(ROOT))))
    for span in spans(page):
        if span.startswith("--"):
            assert span.split()[0].partition("=")[0] in known, span
        for script in re.finditer(r"(?<![\w/])(tools|launch)/\w+\.py", span):
            assert (ROOT / script.group()).is_file(), span


@pages()
def test_make_targets_exist(page: Path) -> None:
    shell = "\n".join(text for language, text in blocks(page) if language in ("bash", "sh"))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for line in [*shell.splitlines(), *spans(page)]:
        match = re.match(r"make ([a-z]+)", line)
        assert match is None or match[1] in targets, line


# ---- configs


def all_keys() -> list[str]:
    """Of all kinds of models."""
    return list(dict.fromkeys(name for kind in KINDS for name, _ in known_keys(load_spec(kind).config)))


@pages()
def test_config_keys_exist(page: Path) -> None:
    known = set(all_keys())
    shell = [text for language, text in blocks(page) if language in ("bash", "sh")]
    shown = [span for span in spans(page) if not span.startswith("unknown key")]  # quotes a message about a typo
    words = [word.strip(",;.:()[]'\"") for text in [*shown, *shell] for word in text.split()]
    named = {word.partition("=")[0] for word in words}
    wrong = [k for k in named if KEY.fullmatch(k) and not FILE_NAMES.fullmatch(k) and k not in known]
    assert wrong == []


def test_every_key_of_training_is_explained() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    own = [key for key in all_keys() if key.startswith(("optim.", "train.", "parallel."))]
    assert [key for key in own if not re.search(rf"`{re.escape(key)}\b", page)] == []


@lru_cache
def example_configs() -> dict[str, dict[str, Any]]:
    """The configs that pages write out: a yaml block that opens with its name as a comment."""
    found = {}
    for page in PAGES:
        for language, text in blocks(page):
            name = re.match(r"# (\S+\.yaml)\n", text)
            if language == "yaml" and name:
                found[name[1]] = yaml.safe_load(text)
    return found


@pages()
def test_configs_and_overrides_of_commands_are_accepted(page: Path, tmp_path: Path) -> None:
    for command in commands(page):
        if "--config" not in command:
            continue
        named = command[command.index("--config") + 1]
        overrides = [word for word in command if KEY.match(word) and "=" in word]
        if named in example_configs():
            path = tmp_path / "example.yaml"
            path.write_text(yaml.safe_dump(example_configs()[named]), encoding="utf-8")
        elif (ROOT / named).is_file():
            path = ROOT / named
        else:
            assert named in ("C", "CONFIG"), f"{named} is neither in configs/ nor written out in the documentation"
            continue
        if "--sweep" in command:
            swept = list(itertools.takewhile(KEY.match, command[command.index("--sweep") + 1 :]))
            make_sweep(path, [word for word in overrides if word not in swept], swept)
        else:
            load_config(path, overrides)


# ---- what pages say of the code


def code_texts() -> list[str]:
    """Every text in the code, with … where a value comes in."""
    texts = []
    for path in [*ROOT.glob("mres/**/*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("launch/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return [*texts, (ROOT / "tools" / "setup_environment.sh").read_text(encoding="utf-8")]


def test_messages_of_troubleshooting_are_said_by_the_code() -> None:
    """Of each message quoted there, a stretch between the values that it names."""
    texts = "\n".join(code_texts())
    rows = [row for row in prose(ROOT / "docs" / "troubleshooting.md").splitlines() if row.startswith("| ")]
    quoted = [" ".join(span.split()) for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])]
    stretches = {span: [s.strip() for s in re.split(r"…|'[^']*'|\d+|[;:(),]", span)] for span in quoted}
    messages = {span: [s for s in found if len(s) >= 12] for span, found in stretches.items() if " " in span}
    assert len(messages) > 40
    assert [span for span, found in messages.items() if found and not any(s in texts for s in found)] == []


def test_table_of_sizes_is_the_codes() -> None:
    rows = re.findall(r"^\| `model\.(\w+)` \|(.*)\|$", prose(ROOT / "docs" / "decisions.md"), flags=re.MULTILINE)
    told = {key: [cell.strip() for cell in cells.split("|")] for key, cells in rows}
    assert len(told) > 15
    coded = {
        key: [str(SIZES[size][key]).replace("True", "true").replace("False", "false") for size in SIZES] for key in told
    }
    assert told == coded


def test_fields_of_metrics_are_documented() -> None:
    tree = ast.parse((ROOT / "mres" / "train" / "trainer.py").read_text(encoding="utf-8"))
    log = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_log")
    dictionary = next(node for node in ast.walk(log) if isinstance(node, ast.Dict))
    fields = {key.value for key in dictionary.keys if isinstance(key, ast.Constant)}
    assert "grad_norm" in fields
    assert fields <= set(spans(ROOT / "docs" / "training.md"))


@pages()
def test_files_of_the_code_that_pages_name_are_there(page: Path) -> None:
    """A path with a folder, from the root or from mres/; those of examples are the reader's own."""
    named = {span for span in spans(page) if re.fullmatch(r"(\w+/)+\w+\.py", span)}
    examples = {span for span in named if span.startswith(("path/", "new/", "mine/"))}
    gone = [span for span in named - examples if not any((root / span).is_file() for root in (ROOT, ROOT / "mres"))]
    assert gone == []
