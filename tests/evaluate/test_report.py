"""The report: parsed, and looked at by a browser where one is installed."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import PATIENCE_S, command
from made_run import make_run
from PIL import Image
from scenes import scenes

from mres.evaluate.report import write_report
from mres.evaluate.results import ResultsError, read_results, summarise, write_results
from mres.shards.reader import ShardSet
from mres.shards.writer import write_shards
from mres.sources.source import RecordSource

VOID = {"meta", "link", "img", "br", "hr", "path", "use", "circle", "rect"}
EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }} </style>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are closed in the wrong order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run_copy(small_run, tmp_path) -> tuple[Path, ShardSet]:
    """A copy of a small run that a test may change."""
    run_dir, shards = small_run
    return Path(shutil.copytree(run_dir, tmp_path / run_dir.name, ignore=shutil.ignore_patterns("report"))), shards


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> tuple[Path, ShardSet]:
    return make_run(tmp_path_factory.mktemp("small"), num_images=3)


@pytest.fixture(scope="module")
def html(made_run) -> str:
    return write_report(*made_run).read_text(encoding="utf-8")


def test_the_page_has_every_section_and_the_figures(made_run, html):
    page = Page(html)
    summary, _ = read_results(made_run[0])
    sections = {attributes["id"] for attributes in page.all("section")}
    assert sections == {"results", "kinds", "training", "iou", "gallery", "run"}
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in sections}
    for group in ("object", "part", "object_part"):
        assert f"{summary[group]['mIoU']:.3f}" in page.text
    assert "best constant mask" in page.text
    assert len(page.all("svg")) == 7
    assert len(page.all("article")) == 48
    assert "max_grad_norm" in page.text  # config.yaml
    assert "0123abc" in page.text  # environment.json
    assert made_run[1].fingerprint in page.text


def test_the_page_needs_nothing_else(html):
    page = Page(html)
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\((?!#)|\bfile:", html)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(html) < 6_000_000
    assert "nan" not in re.findall(r"(?<=[ >\"])nan(?=[ <\"])", html)


def test_charts_follow_the_page_colours(html):
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--object)" in drawn
    assert "var(--part)" in drawn
    assert not re.search(r"#0a0b|(stroke|fill): #(?!none)", drawn)


def test_the_same_run_gives_the_same_bytes(small_run):
    assert write_report(*small_run).read_bytes() == write_report(*small_run).read_bytes()


def test_whatever_came_from_data_is_text(run_copy):
    run_dir, shards = run_copy
    summary, results = read_results(run_dir)
    results = [replace(r, text=EVIL, category=EVIL, kind=EVIL) for r in results]
    summary = summarise(results, threshold=0.5, checkpoint=EVIL, data={"folder": EVIL}, trivial={EVIL: results})
    write_results(run_dir, results, summary)
    (run_dir / "config.yaml").write_text(f"# {EVIL}\n", encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps({EVIL: EVIL}), encoding="utf-8")
    html = write_report(run_dir, shards).read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(EVIL) >= 18
    assert page.all("section")


def test_expressions_that_were_cut_are_said(run_copy):
    run_dir, shards = run_copy
    _, results = read_results(run_dir)
    results = [replace(r, cut=i < 7) for i, r in enumerate(results)]
    write_results(run_dir, results, summarise(results, threshold=0.5, checkpoint="", data={}))
    assert "7 of them are longer than the model reads" in write_report(run_dir, shards).read_text(encoding="utf-8")


def test_a_lone_surrogate_does_not_cost_the_report(run_copy):
    run_dir, shards = run_copy
    _, results = read_results(run_dir)
    results = [replace(r, text="half \ud83d") for r in results]
    write_results(run_dir, results, summarise(results, threshold=0.5, checkpoint="", data={}))
    assert "half ?" in write_report(run_dir, shards).read_text(encoding="utf-8")


def test_without_masks_the_gallery_says_how_to_get_them(tmp_path):
    run_dir, shards = make_run(tmp_path, num_images=2, save_masks=False)
    assert "prediction" not in (run_dir / "results.jsonl").read_text(encoding="utf-8")
    html = write_report(run_dir, shards).read_text(encoding="utf-8")
    assert "evaluate.save_masks=true" in html
    assert Page(html).all("article") == []


def test_results_alone_are_enough(run_copy):
    run_dir, shards = run_copy
    for path in run_dir.iterdir():
        if not path.name.startswith("results"):
            path.unlink()
    page = Page(write_report(run_dir, shards).read_text(encoding="utf-8"))
    assert "no metrics.jsonl" in " ".join(page.text.split())
    assert len(page.all("svg")) == 2  # the histograms


def test_one_granularity_alone_and_few_expressions_make_a_page(run_copy):
    run_dir, shards = run_copy
    _, results = read_results(run_dir)
    few = [result for result in results if result.granularity == "object"][:2]
    write_results(run_dir, few, summarise(few, threshold=0.5, checkpoint="", data={}))
    page = Page(write_report(run_dir, shards).read_text(encoding="utf-8"))
    assert 1 <= len(page.all("article")) <= 2
    write_results(run_dir, [], summarise([], threshold=0.5, checkpoint="", data={}))
    assert Page(write_report(run_dir, shards).read_text(encoding="utf-8")).all("article") == []


def test_metrics_with_gaps_and_a_last_line_cut_off_are_drawn(run_copy):
    run_dir, shards = run_copy
    lines = '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": null, "lr": 1e-05}\n{"step": 4'
    (run_dir / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (run_dir / "evaluations.jsonl").write_text('{"step": 2, "object": {"mIoU": null}}\n', encoding="utf-8")
    assert len(Page(write_report(run_dir, shards).read_text(encoding="utf-8")).all("svg")) == 4


def test_a_long_run_does_not_make_a_long_page(run_copy):
    run_dir, shards = run_copy
    lines = (json.dumps({"step": step, "loss": 1 / step, "grad_norm": 1.0}) for step in range(1, 20_001))
    (run_dir / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    html = write_report(run_dir, shards).read_text(encoding="utf-8")
    assert max(map(len, re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))) < 60_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", 'broken\n{"step": 2}\n', r"metrics\.jsonl:1: not JSON"),
        ("metrics.jsonl", '{"loss": 2}\n', r'metrics\.jsonl:1: .*"step"'),
        ("environment.json", "{", "environment.json': not JSON"),
        ("results.json", "{}", "evaluate again"),
    ],
)
def test_damaged_files_are_named(run_copy, name, content, message):
    run_dir, shards = run_copy
    (run_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(ResultsError, match=message):
        write_report(run_dir, shards)


def test_another_shard_set_is_refused(made_run, tmp_path):
    run_dir, _ = made_run
    write_shards(RecordSource.of(list(scenes(2, seed=9, split="val")), {}), tmp_path / "other")
    with pytest.raises(ResultsError, match="is not the shard set that"):
        write_report(run_dir, ShardSet(tmp_path / "other"))


def test_a_report_is_of_the_set_that_is_named_and_says_which(run_copy, tmp_path):
    run_dir, shards = run_copy
    main = write_report(run_dir, shards).read_bytes()
    write_shards(RecordSource.of(list(scenes(2, seed=9, split="test")), {}), tmp_path / "test")
    other = ShardSet(tmp_path / "test")
    summary, results = read_results(run_dir)
    data = {"folder": "data/test", "fingerprint": other.fingerprint, "split": "test"}
    summary = {**summary, "data": data, "checkpoint": "runs/x/checkpoints/step-00000042"}
    results_of_test = [replace(result, prediction=None) for result in results]
    write_results(run_dir, results_of_test, summary, "results-test")
    path = write_report(run_dir, other)
    assert path.name == "results-test.html"
    text = Page(path.read_text(encoding="utf-8")).text
    for fact in ("data/test (test)", "step-00000042", "evaluated at", " UTC", other.fingerprint):
        assert fact in text
    assert (run_dir / "report" / "index.html").read_bytes() == main == write_report(run_dir, shards).read_bytes()


def report_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("tools/report.py", *arguments)


def test_the_tool_takes_the_data_from_the_runs_config(run_copy):
    run_dir, _ = run_copy
    done = report_tool(str(run_dir))
    assert (done.returncode, done.stdout.strip()) == (0, str(run_dir / "report" / "index.html")), done.stderr
    assert (run_dir / "report" / "index.html").stat().st_size > 50_000


def test_the_tool_says_what_is_missing(tmp_path):
    done = report_tool(str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run at")
    done = report_tool(str(tmp_path))
    assert done.returncode == 2
    assert "--data SET" in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the report with")
def test_a_browser_shows_it(made_run, html, tmp_path):
    picture = tmp_path / "report.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--window-size=1200,1600"]
    page = (made_run[0] / "report" / "index.html").as_uri()
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={picture}", page], check=True, capture_output=True, timeout=PATIENCE_S
    )
    shown = Image.open(picture).convert("RGB")
    assert shown.size == (1200, 1600)
    assert len(shown.getcolors(maxcolors=1 << 24)) > 50  # more than an empty page or an error message
