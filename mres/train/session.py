"""Composition: a config becomes shards, model, strategy, stream and trainer, and a run's folder."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mres.checkpoint import store
from mres.checkpoint.saver import Saver
from mres.checkpoint.writing import supersede
from mres.config import Config
from mres.errors import UserError
from mres.flops import utilisation
from mres.formats.folder import STATE
from mres.model.buffers import persistent_buffers
from mres.model.spec import origin_of_kind
from mres.model.task import SegmentationTask
from mres.parallel.ema import holds_average
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, ParameterGroup
from mres.pretrained.start import check_finite, first_weights, named_sources
from mres.pretrained.whole import check_same_model
from mres.run_folder import RunLog, write_start
from mres.stream.loader import StreamState, TrainingStream
from mres.stream.sets import TrainingSets
from mres.supervise.agreement import check_agreement
from mres.supervise.facts import environment, facts_of_model, facts_of_run
from mres.supervise.flight_recorder import make_folder
from mres.supervise.heartbeat import Heartbeat
from mres.supervise.preflight import check_machine, compare_machines
from mres.supervise.stop_request import StopRequest
from mres.supervise.supervised import supervised
from mres.supervise.threads import set_threads
from mres.supervise.world import World
from mres.train.callback import Callback, Callbacks, users_callbacks
from mres.train.callbacks.console import Console
from mres.train.callbacks.heartbeat import HeartbeatCallback
from mres.train.callbacks.jsonl import Jsonl
from mres.train.callbacks.mfu import Mfu
from mres.train.callbacks.profile import ProfileWindows
from mres.train.callbacks.tensorboard import TensorBoard
from mres.train.callbacks.trace import BatchTrace
from mres.train.evaluations import Evaluations
from mres.train.optim import describe_groups, freeze, lr_scales, parameter_groups
from mres.train.progress import Progress
from mres.train.rollback import DivergenceError, last_good, note
from mres.train.step_filter import nothing_made
from mres.train.trainer import Trainer


def train(config: Config, sets: TrainingSets) -> int:
    """Trains to the end, or to an agreed stop; returns the exit code."""
    stop = StopRequest()
    stop.install()
    findings = check_machine(config)

    def work(world: World, heartbeat: Heartbeat) -> int:
        compare_machines(world, config.run_dir, findings)
        threads = set_threads(config.train.threads)
        if config.train.deterministic:
            set_deterministic()
        session = _Session(config, sets, world, stop, heartbeat)
        session.log.say(threads)
        return session.run()

    return supervised(config.run_dir, config.parallel.timeout_s, work, with_heartbeat=config.train.heartbeat)


def set_deterministic() -> None:
    """Only kernels that give the same bits each time, for the whole process; an operation that has none is an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


class _Session:
    """One run: where it starts from, what it saves, how it ends."""

    def __init__(
        self,
        config: Config,
        sets: TrainingSets,
        world: World,
        stop: StopRequest,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.config, self.world, self.stop, self.heartbeat = config, world, stop, heartbeat
        self.task = SegmentationTask(config.model, config.loss)
        self.strategy = build_strategy(config.parallel, world)
        self.stream = TrainingStream(
            sets,
            config.data,
            self.task.shape,
            self.task.tokenizer,
            seed=config.run.seed,
            rank=world.rank,
            world_size=world.size,
        )
        self.last_step = config.train.total_steps(self.stream.order.steps_per_epoch)
        self._origin = origin_of_kind(config.model.kind)  # now: its file may change or go while the run lasts
        self.patient = config.checkpoint.on_failure == "continue"  # with a disk that is full
        self.log = RunLog(config.run_dir, enabled=world.is_main, patient=self.patient)
        self.progress = Progress()
        self.callbacks = Callbacks()
        self.evaluations = Evaluations(config, self.task, self.strategy, self.log, stop, self._evaluated)
        self.root = config.run_dir / "checkpoints"
        self.saver = Saver(
            self.root,
            self.strategy,
            config.checkpoint,
            self._state,
            config.to_yaml(),
            self.log.say,
            lambda step, folder: self.callbacks.checkpointed(step, folder),
        )

    def run(self) -> int:
        facts = facts_of_run(self.config, self.stream, self.last_step, self.world.size)
        check_agreement(self.strategy.all_gather_object, facts)
        with closing(self.log), closing(self._callbacks()) as self.callbacks:
            checkpoint = self._resume_from()
            step = 0 if checkpoint is None else checkpoint.step
            owes = step <= self.last_step and self.evaluations.owed_after(step)
            if step >= self.last_step and not owes:
                if checkpoint is not None and not Progress.from_json(checkpoint.state).moved(step):
                    raise nothing_made(step, self.config.run_dir)
                self.log.say(f"{self.config.run_dir} is complete: {step} steps (checkpoint.resume=never starts again)")
                return 0
            first_step = self._take_up(checkpoint) if checkpoint else 0
            shortage = self.stream.sets.shortage(self.config.data.expressions_per_image)
            if shortage:
                self.log.say(f"warning: {shortage}")
            model, groups = self._plan()
            self._prepare_folder()
            self._build(model, groups, checkpoint)
            try:
                done = self._fit(first_step)
            except Exception:
                self.saver.drain()
                raise
        return self._farewell(done)

    def _callbacks(self) -> Callbacks:
        """What looks at the run, in the order of calls: what adds to the metrics comes before what writes them."""
        config, world, order = self.config, self.world, self.stream.order
        chosen: list[Callback] = [
            ProfileWindows(config.train, config.run_dir, world, self.last_step, patient=self.patient)
        ]
        if self.heartbeat is not None:
            chosen.insert(0, HeartbeatCallback(self.heartbeat))
        if config.train.trace_batches:
            chosen.append(
                BatchTrace(self.strategy, self.log, lambda step: order.epoch_of(self.progress.batch_index(step - 1)))
            )
        if world.is_main:
            chosen.append(Mfu(lambda: utilisation(config, self.task, world)))
        chosen += users_callbacks(config, world)
        if world.is_main:
            chosen += [Jsonl(self.log), TensorBoard(self.log), Console(self.last_step)]
        return Callbacks(chosen)

    def _fit(self, first_step: int) -> int:
        """Trains; goes back, and on from there, as often as it may."""
        trainer = Trainer(
            self.config,
            strategy=self.strategy,
            task=self.task,
            stream=self.stream,
            log=self.log,
            stop=self.stop,
            saver=self.saver,
            evaluate=self.evaluations.make,
            callbacks=self.callbacks,
        )
        if self.world.is_main:
            # Before the lines go that belong to them: a kill before the first save must not bring them back.
            for later in supersede(self.root, first_step):
                self.log.say(f"{later} is of the run before, and now {later.name}.superseded")
        self.log.rewind(first_step)
        while True:
            self.callbacks.run_start(first_step)
            if self.evaluations.owed and not self.evaluations.make(first_step):
                return first_step
            try:
                return trainer.fit(first_step, self.last_step, self.progress)
            except DivergenceError as trouble:
                first_step = self._go_back(trouble)

    def _go_back(self, trouble: DivergenceError) -> int:
        self.saver.wait()
        allowed = self.config.train.max_rollbacks
        checkpoint = last_good(trouble, self.root, self.strategy, rollbacks=self.progress.rollbacks, allowed=allowed)
        self.strategy.load_state(checkpoint.folder, optimizer=True)
        self.progress = self.progress.gone_back(checkpoint.state, checkpoint.step, trouble.reached)
        note(self.log, trouble, checkpoint.step, self.progress.skipped_batches)
        self.saver.save(checkpoint.step)  # a run that is killed now must know that it went back
        self.saver.wait()
        return checkpoint.step

    def _plan(self) -> tuple[nn.Module, list[ParameterGroup]]:
        """The model without memory, and what of it moves; what cannot be is refused before anything is written."""
        model, optim, spec = self.task.outline(self.config.run.seed), self.config.optim, self.task.spec
        freeze(model, optim.freeze)
        scales = lr_scales(model, optim, spec)
        return model, parameter_groups(model, optim.weight_decay, scales, no_decay=spec.no_decay)

    def _build(self, model: nn.Module, groups: list[ParameterGroup], checkpoint: store.Checkpoint | None) -> None:
        config = self.config
        weights = first_weights(self.task, model, config, self.log.say) if checkpoint is None else None
        check_agreement(self.strategy.all_gather_object, facts_of_model(model))
        for line in describe_groups(model, groups):
            self.log.say(line)
        self.groups = groups
        adamw = AdamW(config.optim.betas, config.optim.eps, config.optim.max_grad_norm)
        self.strategy.wrap(model, self.task.blocks(model), groups, adamw)
        self.log.say(f"strategy {self.strategy.describe()}")
        if weights is not None:
            self.strategy.load_weights(weights)
        if config.optim.ema_decay is not None:
            self.strategy.track_average()
        if checkpoint is not None:
            self.strategy.load_state(checkpoint.folder, optimizer=True)
            self.log.say(f"going on at step {checkpoint.step} from {checkpoint.folder}")
            if config.optim.ema_decay is not None and not holds_average(checkpoint.folder):
                self.log.say("it has no moving average of the weights: one begins here (optim.ema_decay)")
        check_finite(self.strategy, named_sources(config) if checkpoint is None else str(checkpoint.folder))

    def _resume_from(self) -> store.Checkpoint | None:
        """Rank 0 looks and verifies; all take what it found."""
        found: Any = None
        resume = self.config.checkpoint.resume
        if self.world.is_main:
            try:
                found = self._find() if resume == "auto" else None if resume == "never" else store.locate(Path(resume))
            except UserError as error:
                found = error
        found = self.strategy.all_gather_object(found)[0]
        if isinstance(found, UserError):
            raise found
        return found

    def _take_up(self, checkpoint: store.Checkpoint) -> int:
        """Refuses a checkpoint of another model or stream, before anything is written; returns the step to go on at."""
        for warning in check_same_model(checkpoint, self.config.model):
            self.log.say(f"warning: {warning}")
        _check_frozen(checkpoint, self.config)
        if lacking := {"stream", "expressions_seen"} - checkpoint.state.keys():
            raise UserError(f"{checkpoint.folder / STATE} lacks {min(lacking)!r}, without which no run can go on")
        progress = Progress.from_json(checkpoint.state)
        state = StreamState.from_json(checkpoint.state["stream"], str(checkpoint.folder))
        self.stream.check_state(state, checkpoint.step + progress.skipped_batches)
        self.progress = progress
        self.saver.resumed(checkpoint.folder, checkpoint.step)
        return checkpoint.step

    def _find(self) -> store.Checkpoint | None:
        return store.newest_sound(
            self.root, tell=lambda error: self.log.say(f"warning: {error}; looking for an older one")
        )

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "stream": self.stream.state(step + self.progress.skipped_batches).to_json(),
            **self.progress.to_json(),
            "frozen": sorted(self.config.optim.freeze),
            "buffers": sorted(persistent_buffers(self.strategy.model)),
            "groups": [asdict(group) for group in self.groups],
            "model": self.config.model.model_dump(mode="json") | self._origin,
        }

    def _evaluated(self, step: int, table: dict[str, Any] | None) -> None:
        if table is not None:
            self.callbacks.evaluated(step, table)
            figures = ", ".join(f"{g} mIoU {table[g]['mIoU']:.3f}" for g in ("object", "part") if table[g]["num"])
            self.log.say(f"step {step}: {figures}")
        self.saver.measured(step, table)

    def _prepare_folder(self) -> None:
        """Rank 0 makes the run's folder; all ranks learn of it if it cannot."""
        problem = None
        if self.world.is_main:
            try:
                write_start(
                    self.config, environment(self.config, self.world, self.stream.sets) | {"last_step": self.last_step}
                )
                make_folder(self.config.run_dir)
            except OSError as error:
                problem = f"cannot write into the run's folder '{self.config.run_dir}': {error}; set run.dir"
        problem = self.strategy.all_gather_object(problem)[0]
        if problem:
            raise UserError(problem)

    def _farewell(self, done: int) -> int:
        if done >= self.last_step and not self.evaluations.owed:
            self.log.say(f"done: {done} steps; the run is in {self.config.run_dir}")
            return 0
        automatic = "" if self.config.checkpoint.resume == "auto" else " with checkpoint.resume=auto"
        self.log.say(f"stopped at step {done} of {self.last_step}; run the same command again{automatic} to go on")
        # Ranks that were not signalled themselves stop for the one that was.
        return (
            self.strategy.all_gather_object(self.stop.exit_code if self.stop.requested else None)[self.world.rank] or 75
        )


def _check_frozen(checkpoint: store.Checkpoint, config: Config) -> None:
    """Frozen parameters have no moments in a checkpoint, and moments of others would be lost: a run keeps to its own."""
    theirs, mine = checkpoint.state.get("frozen", []), sorted(config.optim.freeze)
    if theirs != mine:
        raise UserError(
            f"cannot resume at step {checkpoint.step}: optim.freeze was {theirs} and is now {mine}; give the run the same "
            "value, or start a new one (run.name=…) from its weights (checkpoint.init_from=…)"
        )
