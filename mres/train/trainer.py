"""The training loop, step by step: fetch, agree, forward and backward, judge, optimizer, log, checkpoint, evaluate.

It knows steps, batches, strategies and checkpoints, and no model. A step reads nothing back from the device: losses and
norms stay there until a line of metrics is due.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mres.checkpoint.saver import Saver
from mres.config import Config
from mres.errors import UserError
from mres.model.task import SegmentationTask
from mres.parallel.strategy import Strategy
from mres.run_folder import RunLog
from mres.stream.batch import Batch
from mres.stream.loader import TrainingStream
from mres.supervise.stop_request import StopRequest
from mres.train.callback import Callbacks
from mres.train.progress import Progress
from mres.train.quarantine import quarantine
from mres.train.schedule import average_weight, learning_rate
from mres.train.step_filter import SkipPolicy, nothing_made


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the batches of all ranks have together, and whether some rank was asked to stop."""

    expressions: float
    images: float
    cut: float
    not_mirrored: float
    bad: float
    stop: bool


@dataclass
class _Window:
    """What has happened since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    images: float = 0
    expressions: float = 0
    cut: float = 0
    not_mirrored: float = 0
    data_wait_s: float = 0.0
    collective_s: float = 0.0
    paused_s: float = 0.0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time of what is inside to one of the figures in seconds."""
        started = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - started)


class Trainer:
    """Runs steps first_step … last_step-1 of a run."""

    # Of one `fit`.
    _progress: Progress
    _skips: SkipPolicy
    _window: _Window

    def __init__(
        self,
        config: Config,
        *,
        strategy: Strategy,
        task: SegmentationTask,
        stream: TrainingStream,
        log: RunLog,
        stop: StopRequest,
        saver: Saver,
        evaluate: Callable[[int], bool],
        callbacks: Callbacks,
    ) -> None:
        self._config, self._strategy, self._task, self._stream = config, strategy, task, stream
        self._run_log, self._stop, self._saver, self._evaluate = log, stop, saver, evaluate
        self._callbacks = callbacks
        self._said_cut = self._said_not_mirrored = False

    def fit(self, first_step: int, last_step: int, progress: Progress) -> int:
        """Returns the number of steps done: last_step, or fewer where a stop was agreed (then a checkpoint is written).

        `progress` is what was counted before `first_step`; it goes on being counted in place.

        Raises:
            DivergenceError: too many steps were skipped.
        """
        config, self._progress, self._window = self._config, progress, _Window()
        self._skips = SkipPolicy(config, self._strategy, self._run_log, progress)
        batches = self._stream.batches(progress.batch_index(first_step), progress.batch_index(last_step))
        for step in range(first_step, last_step):
            done = step + 1
            fetched = self._fetch(step, batches)
            batch, agreed = self._agree(step, fetched)
            self._count(step, batch, agreed)
            losses = self._forward_backward(step, batch, agreed.expressions)
            lr = learning_rate(step, last_step, config.optim, self._stream.order.steps_per_epoch)
            self._callbacks.phase("optimizer", done)
            judgement = self._skips.judge(step, losses["loss"])
            norm = self._strategy.step(lr, judgement.may_move)  # on the device: finite, and no spike
            self._skips.note(judgement, norm, batch)
            self._after_step(step, batch)
            ends = agreed.stop or done == last_step
            if done % config.train.log_every == 0 or ends:
                self._log(step, losses, lr)
            if done == last_step:
                self._check_moved(done)
            if done % config.checkpoint.every == 0 or ends:
                self._checkpoint(done, last=ends)
            if agreed.stop and done < last_step:
                return done
            if config.evaluate.every and done % config.evaluate.every == 0 and not self._evaluation(done):
                return done
        return last_step

    def _fetch(self, step: int, batches: Iterator[Batch]) -> Batch | UserError:
        """The next batch, or what keeps it away, as a value: the other ranks must hear of it, too."""
        self._callbacks.phase("data", step + 1)
        fetched: Batch | UserError
        with self._window.timed("data_wait_s"):
            try:
                fetched = next(batches)
            except UserError as error:
                fetched = error
        with self._window.timed("paused_s"):
            self._callbacks.before_step(step + 1)
        return fetched

    def _agree(self, step: int, fetched: Batch | UserError) -> tuple[Batch, Agreed]:
        """The batch, and what it has together with those of all ranks.

        Raises:
            UserError: on every rank, what kept a batch from one of them, or a checkpoint from the disk.
        """
        self._callbacks.phase("collective", step + 1)
        counts = [0.0] * 5
        if isinstance(fetched, Batch):
            numbers = fetched.num_images, fetched.num_cut, fetched.num_not_mirrored, len(fetched.bad)
            counts = [float(fetched.valid_BK.sum()), *numbers]
        lost = not isinstance(fetched, Batch)
        signs = float(self._stop.requested), float(lost), float(self._saver.failed())
        with self._window.timed("collective_s"):
            sums = self._strategy.all_reduce_sum([*counts, *signs])
        expressions, images, cut, not_mirrored, bad, stop, num_lost, num_failed = sums
        if num_failed:
            self._saver.wait()
        if num_lost:
            problems = self._strategy.all_gather_object(fetched if lost else None)
            raise next(problem for problem in problems if problem is not None)
        assert isinstance(fetched, Batch), "else one is lost"
        return fetched, Agreed(expressions, images, cut, not_mirrored, bad, bool(stop))

    def _count(self, step: int, batch: Batch, agreed: Agreed) -> None:
        """Into metrics and checkpoints; what is odd about the batch is said."""
        window, progress = self._window, self._progress
        window.steps += 1
        window.images += agreed.images
        window.expressions += agreed.expressions
        window.cut += agreed.cut
        window.not_mirrored += agreed.not_mirrored
        progress.expressions_seen += int(agreed.expressions)
        if agreed.cut and not self._said_cut:
            self._said_cut = True
            self._run_log.say(
                f"warning: expressions longer than the model's {self._task.shape.text_length} tokens lose their "
                "end; metrics.jsonl counts them (cut_expressions)"
            )
        if agreed.not_mirrored and not self._said_not_mirrored:
            self._said_not_mirrored = True
            self._run_log.say(
                "note: an image stays as it is where a mirror would make its words untrue, or they cannot be judged; "
                "metrics.jsonl counts them (not_mirrored_images), `tools/shard.py info SET --mirroring` says why"
            )
        if agreed.bad:
            messages = [message for rank in self._strategy.all_gather_object(batch.bad) for message in rank]
            num_images, allowed = self._stream.order.num_images, self._config.data.max_bad_fraction
            quarantine(messages, step + 1, progress.quarantined, num_images, allowed, self._run_log)

    def _forward_backward(self, step: int, batch: Batch, expressions: float) -> dict[str, Tensor]:
        """Gradients of all micro-batches; this rank's share of the global batch's losses, on the device."""
        strategy = self._strategy
        _seed_step(self._config.run.seed, self._progress.batch_index(step), strategy.world.rank)
        micro_batches = batch.split(self._config.train.accumulate)
        losses: dict[str, Tensor] = {}
        for number, micro in enumerate(micro_batches, start=1):
            with strategy.micro_batch(last=number == len(micro_batches)):
                self._callbacks.phase("forward", step + 1)
                sums = self._task.losses(strategy.module, micro.to(strategy.world.device))
                self._callbacks.phase("backward", step + 1)
                # Ranks' gradients are averaged: times their number, it is their sum, divided by all expressions.
                strategy.backward(sums["loss"] * (strategy.world.size / max(1.0, expressions)))
            for name, value in sums.items():
                losses[name] = losses.get(name, 0) + value.detach() / max(1.0, expressions)
        return losses

    def _after_step(self, step: int, batch: Batch) -> None:
        # A step that was skipped counts for the average too: which it was, only the device knows.
        weight = average_weight(step, self._config.optim)
        if weight and self._strategy.average is not None:
            self._strategy.average.update(weight)
        with self._window.timed("paused_s"):
            self._callbacks.after_step(step + 1, batch)

    def _checkpoint(self, done: int, *, last: bool) -> None:
        with self._window.timed("paused_s"):
            self._skips.read()  # a checkpoint must not be written behind a run of bad steps that nobody looked at
            self._skips.remember()
            self._callbacks.phase("checkpoint", done)
            self._saver.save(done, last=last)

    def _check_moved(self, done: int) -> None:
        """Raises: UserError: the run comes to its end, and every step of it was skipped."""
        if not self._strategy.steps_made():
            raise nothing_made(done, self._config.run_dir)

    def _evaluation(self, done: int) -> bool:
        """Whether it came to its end; where somebody asked to stop meanwhile, what was trained is saved instead."""
        self._callbacks.phase("evaluate", done)
        with self._window.timed("paused_s"):
            if self._evaluate(done):
                return True
        self._checkpoint(done, last=True)
        return False

    def _log(self, step: int, losses: dict[str, Tensor], lr: float) -> None:
        self._callbacks.phase("metrics", step + 1)
        names = sorted(losses)
        totals = self._strategy.all_reduce(torch.stack([losses[n].double() for n in names])).tolist()
        norm = self._skips.read()
        window, now = self._window, time.perf_counter()
        seconds = max(1e-9, now - window.started - window.paused_s)
        order, progress = self._stream.order, self._progress
        self._callbacks.on_log(
            {
                "step": step + 1,
                "epoch": order.epoch_of(progress.batch_index(step)),
                "images_seen": order.images_before(progress.batch_index(step + 1)),
                "expressions_seen": progress.expressions_seen,
                **dict(zip(names, totals, strict=True)),
                "grad_norm": norm,
                "lr": lr,
                "step_s": seconds / window.steps,
                "data_wait_s": window.data_wait_s / window.steps,
                "collective_s": window.collective_s / window.steps,
                "images_per_s": window.images / seconds,
                "expressions_per_s": window.expressions / seconds,
                "cut_expressions": int(window.cut),
                "not_mirrored_images": int(window.not_mirrored),
                "bad_steps": progress.bad_steps,
                "spikes": progress.spikes,
                "rollbacks": progress.rollbacks,
                "bad_images": len(progress.quarantined),
                "peak_memory_bytes": _peak_memory(self._strategy.world.device),
                **self._saver.figures(),
            }
        )
        self._window = _Window()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout draws from (seed, batch, rank), so a resumed run draws what the uninterrupted one would have drawn."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
