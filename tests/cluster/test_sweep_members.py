"""The members of a sweep: which there are, what they are called, and what is refused before anything is queued."""

import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mres.cluster import jobs
from mres.cluster.options import build_parser
from mres.cluster.sweep import SWEEP, Sweep, _split, make_sweep, member_names
from mres.cluster.sweep_job import _left
from mres.errors import UserError


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*words: str, overrides: tuple[str, ...] = ("run.name=s",)) -> Sweep:
    return make_sweep(None, overrides, words)


def listed(text: str) -> Sweep:
    Path("sets.yaml").write_text(text)
    return sweep("sets.yaml")


def test_a_grid_has_every_combination_in_a_folder_of_its_own() -> None:
    made = sweep("optim.lr=1e-5,3e-5", "run.seed=0,1,2", "train.steps=7")
    assert [member.name for member in made.members] == [
        f"lr-{rate}_seed-{seed}" for rate in ("1e-5", "3e-5") for seed in (0, 1, 2)
    ]
    assert {member.config.train.steps for member in made.members} == {7}
    last = made.members[-1]
    assert (last.number, last.config.optim.lr, last.config.run.seed) == (5, 3e-5, 2)
    assert last.folder == Path("runs/s/lr-3e-5_seed-2")
    assert last.overrides == ("optim.lr=3e-5", "run.seed=2")


def test_a_list_has_its_sets_and_names() -> None:
    made = listed("- {optim.lr: 1e-5, optim.betas: [0.9, 0.99]}\n- {optim.lr: 3e-5, run.name: bold}\n")
    assert [member.name for member in made.members] == ["lr-1e-5_betas-0.9-0.99", "bold"]
    assert made.members[0].config.optim.betas == (0.9, 0.99)
    assert made.members[1].folder == Path("runs/s/bold")


def test_words_behind_sweep_and_elsewhere_are_told_apart() -> None:
    """`--sweep` ends at the next option; overrides that stand before it, or behind that, are overrides."""
    words = ["a.b=1", "--sweep", "optim.lr=1,2", "run.seed=0,1", "--nodes", "2", "c.d=3", "--sweep", "e.f=4,5"]
    options = build_parser(None).parse_intermixed_args(["--config", "c", *words])
    assert options.overrides == ["a.b=1", "c.d=3"]
    assert options.sweep == ["optim.lr=1,2", "run.seed=0,1", "e.f=4,5"]


@given(
    st.lists(
        st.sampled_from(["1", "[1, 2]", "{a: 1, b: [2,3]}", "'x,y'", '"[,"', "['a]', 2]", "it's", "-3e-5"]), min_size=1
    )
)
def test_commas_within_a_value_are_part_of_it(values: list[str]) -> None:
    assert _split(",".join(values)) == values


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_names_are_bounded_different_and_fit_for_a_folder(values: list[str]) -> None:
    """Of a key that takes any text; what a config refuses anyway is no counterexample."""
    quoted = [yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True).strip() for value in values]
    try:
        made = sweep(f"checkpoint.init_from={','.join(quoted)}")
    except UserError:
        return
    names = [member.name for member in made.members]
    assert len({name.lower() for name in names}) <= len(set(names)) == len(values)
    assert all(len(name.encode()) <= 100 and "/" not in name and not name.startswith(".") for name in names)
    assert [member.config.checkpoint.init_from for member in made.members] == values


def test_long_names_are_cut_and_stay_different() -> None:
    made = sweep(f"data.train={'x' * 300}/a,{'x' * 300}/b")
    first, second = (member.name for member in made.members)
    assert first != second
    assert max(len(first), len(second)) <= 100


def test_keys_of_one_last_part_are_told_apart() -> None:
    assert sweep("data.train=a,b", "data.val=a,c").members[0].name == "train-a_val-a"
    names = [member.name for member in sweep("optim.lr=1,2", "optim.image_lr_scale=1,2").members]
    assert names[0] == "lr-1_image_lr_scale-1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lrr=1,2"], "did you mean 'optim.lr'?"),
        (["optim.lr=1e-5,1e-5"], "1e-5 is given twice"),
        (["optim.lr=1e-5,0.00001"], "are the same run"),
        (["optim.lr=1,-1"], "optim.lr=-1"),
        (["optim.lr=1e-5"], "no key has several values"),
        (["optim.lr=1,,2"], "a value is missing"),
        (["optim.lr=1,2", "optim.lr=3,4"], "optim.lr: it is given twice"),
        (["run.name=a,b"], "run.name"),
        (["run.dir=a,b"], "run.dir"),
        (
            ["run.seed=" + ",".join(map(str, range(50))), "train.steps=" + ",".join(map(str, range(1, 50)))],
            "2,450 members",
        ),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["nowhere.yaml", "optim.lr=1,2"], "not both"),
    ],
)
def test_mistakes_name_the_word(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"sweep|unknown key") as caught:
        sweep(*words)
    assert said in str(caught.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.lr: 1", "expected a list"),
        ("[]", "expected a list"),
        ("- optim.lr", "expected a list"),
        ("- {optim.lr: 1, run.dir: x}\n- {optim.lr: 2}", "run.dir"),
        ("- {optim.lr: 1, run.name: x}\n- {optim.lr: 2, run.name: x}", "the name 'x'"),
        ("- {optim.lr: 1, run.name: slurm}", "'slurm'"),
        ("- {optim.lr: 1, run.name: a}\n- {optim.lr: 1.0, run.name: b}", "are the same run"),
        ("- {optim.lr: 1, run.name: ../up}", "plain folder name"),
        ("- {optim: {lr: 1}}", "an override is section.key=value"),
        ("- {optim.lr: *x}", "not YAML"),
    ],
)
def test_mistakes_in_a_list_are_named(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        listed(text)
    assert said in str(caught.value)


def test_a_key_is_not_given_to_all_and_swept() -> None:
    with pytest.raises(UserError, match=r"optim\.lr is given to all members"):
        sweep("optim.lr=1,2", overrides=("optim.lr=3",))


def test_members_keep_their_numbers_when_the_sweep_grows() -> None:
    first = sweep("optim.lr=1,2")
    first.folder.mkdir(parents=True)
    first.keep_numbers()
    more = sweep("optim.lr=3,2")
    assert [(member.name, member.number) for member in more.members] == [("lr-3", 2), ("lr-2", 1)]
    more.keep_numbers()
    assert member_names(more.folder) == ["lr-1", "lr-2", "lr-3"]


def test_a_name_that_was_another_member_is_refused() -> None:
    first = listed("- {optim.lr: 1, run.name: a}")
    first.folder.mkdir(parents=True)
    first.keep_numbers()
    with pytest.raises(UserError, match=r"was optim\.lr=1"):
        listed("- {optim.lr: 2, run.name: a}")


def test_the_folder_of_a_run_is_no_sweeps() -> None:
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/config.yaml").touch()
    with pytest.raises(UserError, match="folder of a run"):
        sweep("optim.lr=1,2")


def test_a_file_of_members_that_is_none_is_refused() -> None:
    Path("runs/s").mkdir(parents=True)
    Path("runs/s", SWEEP).write_text('{"a": 1}')
    with pytest.raises(UserError, match="no list of a sweep's members"):
        sweep("optim.lr=1,2")


def test_the_script_is_bash_and_runs_each_member_with_its_own() -> None:
    from mres.cluster.request import JobRequest
    from mres.cluster.script import Array, Program, Task, script_text

    made = sweep("data.train=it's,$HOME", overrides=("run.name=s",))
    tasks = tuple(Task(m.number, m.folder, Program(Path("/code"), m.words, Path("/w"))) for m in made.members)
    request = JobRequest("slurm", 1, 0, 1, 1)
    text = script_text(request, made.config, tasks[0].program, Array(tasks, 1))
    assert "#SBATCH --array=0,1%1" in text
    head, _, _ = text.partition("# From here on")
    for member in made.members:
        asked = f'{head}\nprintf "%s\\n" "$run_dir" "${{arguments[@]}}"'
        environ = {"SLURM_ARRAY_TASK_ID": str(member.number)}
        done = subprocess.run(["bash", "-c", asked], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [str(member.folder.absolute()), *member.words]


def test_what_is_left_of_a_sweep(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One is done, one has failed, one was done before it was to have more steps, one is new."""
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM
    made = listed("".join(f"- {{run.seed: {seed}, train.steps: {steps}}}\n" for seed, steps in enumerate((5, 5, 9, 5))))
    done, failed = jobs.Event("1", "ended", exit_code=0), jobs.Event("1", "failed", exit_code=1)
    for member, event in zip(made.members, (done, failed, done), strict=False):
        member.folder.mkdir(parents=True)
        jobs.note(member.folder, event)
        (member.folder / "metrics.jsonl").write_text('{"step": 5}\n')
    assert [member.number for member in _left(made)] == [1, 2, 3]
    assert "1 of 4 members are left out: 1 done" in capsys.readouterr().out
