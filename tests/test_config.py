"""What a config may say, what is said about one that may not, and what every key does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from commands import command
from pydantic import BaseModel

from mres.config import Config, ConfigError, known_keys, load_config
from mres.model.config import ModelConfig
from mres.model.spec import KINDS, load_spec
from mres.model.unires.config import SIZES, UniresConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STRATEGIES = ("single", "ddp", "fsdp", "zero")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes configs/x.yaml and returns that path, relative to the working directory."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("configs/x.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    return str(raised.value)


def names(text: str, *words: str) -> None:
    """A message is held to what it must name and to being one line, not to its wording."""
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text


def test_a_typo_is_named_with_its_file_and_the_key_that_was_meant(write) -> None:
    path = write("optim: {learning_rate: 1.0e-3}\n")
    names(message(path), "'optim.learning_rate'", "configs/x.yaml", "'optim.lr'")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optim.learing_rate", "optim.lr"),  # a typo in another framework's name
        ("optim.weigth_decay", "optim.weight_decay"),
        ("optimm.lr", "optim"),
        ("train.lr", "optim.lr"),
        ("data.batch_size", "data.images_per_batch"),
        ("data.agument.flip", "data.augment"),
        ("data.augment.flips", "data.augment.flip"),
        ("model.vision_dept", "model.vision_depth"),
        ("train.save_every", "checkpoint.every"),
        ("parallel.gradient_clipping", "optim.max_grad_norm"),
    ],
)
def test_near_names(key: str, meant: str) -> None:
    unknown = key.removesuffix(".lr") if key.startswith("optimm") else key.removesuffix(".flip")
    assert message(None, f"{key}=1") == f"unknown key '{unknown}' (command line); did you mean '{meant}'?"


def test_a_name_like_no_other_gets_the_list_of_keys() -> None:
    text = message(None, "run.zebra=1")
    names(text, "'run.zebra'", "command line", "dir, name, seed")
    assert "allowed: run, data, model, loss" in message(None, "zebra.x=1")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=many", "train.steps = 'many': Input should be a valid integer"),
        ("train.steps=0", "train.steps = 0: Input should be greater than or equal to 1"),
        ("train.log_every=2.5", "train.log_every = 2.5: Input should be a valid integer"),
        (
            "parallel.timeout_s=100000000000000",
            "parallel.timeout_s = 100000000000000: Input should be less than or equal",
        ),
        ("data.augment.zoom=[1,.inf]", "data.augment.zoom.1 = inf: Input should be a finite number"),
        ("train.steps=true", "train.steps = True: a number is due"),
        ("data.augment.flip=true", "data.augment.flip = True: a number is due"),  # pydantic would flip every image
        ("data.augment.zoom=[2,1]", "data.augment: zoom=[2.0, 1.0] must be [low, high]"),
        (
            "data.kind_weights.position=-1",
            "data.kind_weights.position = -1: Input should be greater than or equal to 0",
        ),
        ("optim.betas=[0.9,1.5]", "optim: betas=[0.9, 1.5] must lie in [0, 1)"),
        ("optim.min_lr=1", "optim: min_lr=1.0 is above lr=1e-05"),
        ("optim.ema_every=2", "optim: ema_every=2 has an effect with ema_decay only"),
        ("optim.ema_decay=1", "optim.ema_decay = 1: Input should be less than 1"),
        ("optim.freeze=text", "optim.freeze = 'text': Input should be a valid tuple"),
        ("train.spike_window=50", "train: spike_window=50 has an effect with spike_factor only"),
        ("train.spike_factor=1", "train.spike_factor = 1: Input should be greater than 1"),
        ("checkpoint.keep_every=1500", "checkpoint: keep_every=1500 must be a multiple of every=1000"),
        ("checkpoint.keep_best=mIoU", "'mIoU' is no figure of an evaluation; give object, part or"),
        ("checkpoint.on_failure=wait", "Input should be 'stop' or 'continue'"),
        ("evaluate.weights=average", "Input should be 'model' or 'ema'"),
        ("optim=5", "an override is section.key=value"),
        ("optim.lr", "an override is section.key=value"),
        ("run.name=a/b", "'a/b' is not a plain folder name"),
        ("run.name=..", "'..' is not a plain folder name"),
        ("model.size=huge", "model.size = 'huge': Input should be 'tiny', 'base' or 'large'"),
        ("model.patch_size=7", "image_size=96 is not a multiple of patch_size=7"),
        ("model.split_block=4", "split_block=4 must be below vision_depth=4"),
        ("parallel.strategy=dpp", "Input should be 'single', 'ddp', 'fsdp' or 'zero'"),
        ("parallel.zero_stage=3", "zero_stage=3 has an effect with strategy=zero only, not with strategy=fsdp"),
        ("train.accumulate=5", "data.images_per_batch=32 is not a multiple of train.accumulate=5"),
        ("data.train=[1", "cannot read the value of 'data.train=[1' as YAML"),
        ("data.train.x=1", "data.train: expected a shard folder, or a list of folders and of {path: …, weight: …}"),
        ("data.train=[]", "or a list of folders and of {path: …, weight: …}, found []"),
        ("data.train=[a,3]", "data.train: set 2: expected a shard folder or {path: …, weight: …}, found 3"),
        ("data.train=[a,{path: b,wieght: 2}]", "data.train: set 2: unknown key 'wieght'; did you mean 'weight'?"),
        ("data.train=[{weight: 2},b]", "data.train: set 1: path = {'weight': 2}: Field required"),
        ("data.train=[a,{path: b,weight: 0}]", "data.train: set 2: weight = 0: Input should be greater than 0"),
        ("data.train=[a,{path: b,weight: true}]", "data.train: set 2: weight = True: a number is due"),
        ("data.train=[a,b,a]", "data: train names 'a' twice; name it once, with a weight"),
        ("data.train=[{path: a,weight: 2}]", "data: train: a weight has an effect with several sets only"),
        ("data.mix_temperature=2", "mix_temperature=2 has an effect with several sets in train only"),
        ("data.mix_temperature=0.5", "data.mix_temperature = 0.5: Input should be greater than or equal to 1"),
        ("run.seed=1.5", "Input should be a valid integer"),
    ],
)
def test_wrong_values_are_named_and_come_from_the_command_line(override: str, words: str) -> None:
    text = message(None, override)
    assert words in text
    assert "\n" not in text


def test_both_steps_and_epochs_says_how_to_choose(write) -> None:
    path = write("train: {epochs: 3}\n")
    text = message(path, "train.steps=10")
    names(text, "train", "steps=10", "epochs=3", "null", "configs/x.yaml", "command line")
    assert load_config(path, ["train.steps=10", "train.epochs=null"]).train.steps == 10


def test_a_warm_up_is_given_in_steps_or_in_epochs(write) -> None:
    path = write("optim: {warmup_steps: 3}\n")
    assert "optim: warmup_steps=3 and warmup_epochs=2 are both given" in message(path, "optim.warmup_epochs=2")
    config = load_config(path, ["optim.warmup_epochs=2", "optim.warmup_steps=null"])
    again = load_config(write(config.to_yaml()))
    assert (again.optim.warmup_steps, again.optim.warmup_epochs) == (None, 2)


def test_no_number_is_infinite() -> None:
    """None of them would mean anything, and YAML has a word for it."""
    numbers = [
        f"{section}.{name}"
        for section, of in Config.model_fields.items()
        for name, field in (UniresConfig if of.annotation is ModelConfig else of.annotation).model_fields.items()
        if float in (field.annotation, *get_args(field.annotation))
    ]
    assert {"optim.weight_decay", "loss.bce_weight", "data.remote_timeout_s", "model.dropout"} <= set(numbers)
    for key in numbers:
        for value in (".inf", "-.inf", ".nan"):
            assert re.match(rf"{key} = \S+: Input should be ", message(None, f"{key}={value}"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("optim: [1, 2", "not YAML: "),
        ("optim: {lr: 1}\noptim: {min_lr: 0}\n", "not YAML: key 'optim' is given twice (configs/x.yaml:2)"),
        ("train:\n  steps: 1\n  steps: 2\n", "key 'steps' is given twice (configs/x.yaml:3)"),
        ("optim: &a {lr: 1}\nloss: *a\n", "the anchor '&a' is not read"),
        ("run: {name: '\\ud800'}\n".replace("'", '"'), "U+D800"),
        ("train: {steps: 010}\n", "train.steps = 010: YAML 1.1 reads a leading zero as octal"),
        ("optim: {lr: 1:30}\n", "optim.lr = '1:30': Input should be a valid number"),
        (f"train: {{steps: {'9' * 40}}}\n", "below 2^63"),
        ("- a\n- b\n", "expected sections (run, data, model"),
        ("just words", "expected sections (run, data, model"),
        ("optim: 5\n", "optim = 5: Input should be a valid dictionary"),
        ("\x00", "not YAML: "),
        ("run: !!python/object/apply:os.system [echo]\n", "os.system' is not read; write the value alone"),
        ("1: {2: 3}\n", "unknown key '1' (configs/x.yaml); allowed: run"),
        (
            "optim: {lr: 1.0e-3, nonsense_key: 2}\n",
            "unknown key 'optim.nonsense_key' (configs/x.yaml); allowed in optim",
        ),
    ],
)
def test_files_that_cannot_be_used(write, content: str, words: str) -> None:
    text = message(write(content))
    assert words in text
    assert "configs/x.yaml" in text


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    names(message(tmp_path / "no.yaml"), f"'{tmp_path}/no.yaml'", "configs/")
    assert f"cannot read the config '{tmp_path}'" in message(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("run: {name: caf\xe9}".encode("latin-1"))
    assert f"cannot read '{tmp_path}/latin.yaml'" in message(tmp_path / "latin.yaml")


def test_an_empty_file_and_an_empty_section_are_the_defaults(write) -> None:
    assert load_config(write("# nothing\n")) == Config()
    assert load_config(write("optim:\n  # lr: 1\n")) == Config()


def test_an_option_of_the_other_way_to_shuffle_is_refused() -> None:
    text = message(None, "data.shuffle=uniform", "data.shuffle_window=64")
    assert "shuffle_window=64 has an effect with shuffle=blocks only, not with shuffle=uniform" in text
    assert load_config(None, ["data.shuffle=uniform"]).data.shuffle == "uniform"
    assert load_config(None, ["data.shuffle_window=64"]).data.shuffle_window == 64


@pytest.mark.parametrize(
    ("given", "sets"),
    [
        ("null", []),
        ("some where", [("some where", 1)]),
        ("[a]", [("a", 1)]),
        ("[a, {path: b, weight: 2.5}, {path: c}]", [("a", 1), ("b", 2.5), ("c", 1)]),
    ],
)
def test_sets_to_train_on(tmp_path: Path, given: str, sets: list[tuple[str, float]]) -> None:
    config = load_config(None, [f"data.train={given}"])
    assert [(chosen.path, chosen.weight) for chosen in config.data.train_sets] == sets
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(tmp_path / "c.yaml")
    assert again == config
    assert again.sha256() == config.sha256()


def test_overrides(write) -> None:
    path = write("optim: {lr: 0.5, warmup_steps: 7}\ndata: {kind_weights: {position: 2}}\n")
    config = load_config(
        path,
        [
            "optim.lr=1e-4",  # text in YAML 1.1
            "data.val=some where",
            "data.kind_weights.colour=0",
            "--train.log_every=3",
            "train.threads=null",
            "run.name=007",  # a number in YAML
            "run.seed=1",
            "run.seed=2",
        ],
    )
    assert config.optim.lr == 1e-4
    assert config.optim.warmup_steps == 7
    assert config.data.val == "some where"
    assert config.data.kind_weights == {"position": 2, "colour": 0}
    assert (config.train.log_every, config.train.threads) == (3, None)
    assert (config.run.name, config.run.seed) == ("007", 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_printed_loads_back_to_the_same_config(tmp_path: Path, size: str, strategy: str) -> None:
    overrides = [f"model.size={size}", f"parallel.strategy={strategy}", "optim.lr=3e-5", "data.augment.zoom=[0.5,2]"]
    config = load_config(None, [*overrides, "train.epochs=2", "data.kind_weights={a: 2}", "run.name='007'"])
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(tmp_path / "c.yaml")
    assert again == config
    assert again.sha256() == config.sha256()
    assert again.to_yaml() == config.to_yaml()
    assert again.sha256() != load_config(tmp_path / "c.yaml", ["run.seed=5"]).sha256()


@pytest.mark.skipif(not CONFIGS, reason="no configs/ here")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_the_configs_that_come_with_mres_load_under_every_strategy(path: Path, strategy: str | None) -> None:
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config(path, [f"parallel.strategy={strategy}"] if strategy else [])
    assert config.parallel.strategy == (strategy or file.get("parallel", {}).get("strategy", "fsdp"))
    assert path.read_text(encoding="utf-8").startswith("# "), "it opens with what it reproduces"


def test_another_strategy_keeps_its_own_keys(write) -> None:
    path = write("parallel: {strategy: zero, zero_stage: 3}\n")
    assert load_config(path, ["parallel.strategy=zero"]).parallel.zero_stage == 3
    assert load_config(path, ["parallel.strategy=fsdp"]).parallel.strategy == "fsdp"
    assert "zero_stage=1 has an effect" in message(path, "parallel.strategy=fsdp", "parallel.zero_stage=1")


def keys() -> Iterator[tuple[str, str]]:
    """(section, key) of everything that can be set, whatever the kind of the model."""
    for kind in KINDS:
        for name, field in known_keys(load_spec(kind).config):
            section, _, key = name.rpartition(".")
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                yield section.rpartition(".")[2], key


def reads() -> set[tuple[str, str]]:
    """(owner, attribute) of every attribute that the package reads outside of config files: `config.data.train` is
    ("data", "train"), `self._config.threshold` is ("config", "threshold")."""
    found = set()
    for path in (ROOT / "mres").rglob("*.py"):
        if path.name == "config.py" or path.parent.name == "bench":  # a bench makes configs, it obeys none
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((name.lstrip("_"), node.attr))
    return found


def test_no_option_is_without_effect() -> None:
    read = reads()
    unread = {f"{section}.{key}" for section, key in keys() if not {(section, key), ("config", key)} & read}
    assert unread == {
        "data.test",  # read by the name that data.split has
        "model.size",  # stands for other keys
        "train.epochs",  # read through TrainConfig.total_steps
    }
    assert load_config(None, ["run.dir=/a", "run.name=b"]).run_dir == Path("/a/b")
    assert load_config(None, ["train.steps=7"]).train.total_steps(5) == 7
    assert load_config(None, ["train.epochs=3"]).train.total_steps(5) == 15
    assert load_config(None).train.total_steps(5) == 250, "the paper's 50 epochs"


def test_every_section_refuses_unknown_keys_and_is_frozen() -> None:
    models = [Config, *(f.annotation for f in Config.model_fields.values() if isinstance(f.annotation, type))]
    assert len(models) == 10
    for model in models:
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["frozen"]


def test_the_command_prints_the_resolved_config(write) -> None:
    path = write("model: {size: base}\n")
    done = command("mres.config", path, "optim.lr=1e-4")
    assert done.returncode == 0
    values = yaml.safe_load(done.stdout)
    assert values["optim"]["lr"] == 1e-4
    assert values["model"]["vision_width"] == 768
    assert set(values) == set(Config.model_fields)


def test_the_command_fails_in_one_line(write) -> None:
    done = command("mres.config", write("optim: {learning_rate: 1}\n"))
    assert done.returncode == 2
    assert done.stdout == ""
    names(done.stderr.rstrip("\n"), "error: ", "'optim.learning_rate'", "configs/x.yaml", "'optim.lr'")
    assert re.fullmatch("usage: .*\n", command("mres.config", "--help").stdout)
