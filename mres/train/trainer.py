"""The training loop. It knows steps, batches, strategies and checkpoints, and no model.

A step reads nothing back from the device: losses and norms stay there until a line of metrics is due.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from mres.config import Config
from mres.errors import UserError
from mres.parallel.strategy import Strategy
from mres.stream.batch import Batch, StreamShape
from mres.stream.loader import TrainingStream
from mres.supervise.stop_request import StopRequest
from mres.train.instruments import Instruments
from mres.train.monitor import Monitor
from mres.train.progress import Progress
from mres.train.schedule import average_weight, learning_rate
from mres.train.step_filter import StepFilter


class Task(Protocol):
    """What is trained: sums over a batch's valid expressions, "loss" the one to differentiate."""

    @property
    def shape(self) -> StreamShape: ...

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]: ...


class Saving(Protocol):
    """Who writes checkpoints, perhaps while training goes on (`checkpoint/saver.py`)."""

    def save(self, step: int, *, last: bool = False) -> None: ...
    def failed(self) -> bool: ...
    def wait(self) -> None: ...
    def figures(self) -> Mapping[str, float | int]: ...


@dataclass
class _Window:
    """What has happened since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    images: float = 0
    expressions: float = 0
    cut: float = 0
    data_wait_s: float = 0.0
    collective_s: float = 0.0
    paused_s: float = 0.0


class Trainer:
    """Runs steps first_step … last_step-1 of a run."""

    def __init__(
        self,
        config: Config,
        *,
        strategy: Strategy,
        task: Task,
        stream: TrainingStream,
        monitor: Monitor,
        stop: StopRequest,
        saver: Saving,
        evaluate: Callable[[int], None],
        instruments: Instruments | None = None,
    ) -> None:
        self._config, self._strategy, self._task, self._stream = config, strategy, task, stream
        self._monitor, self._stop, self._saver, self._evaluate = monitor, stop, saver, evaluate
        self._instruments = instruments or Instruments()
        self._window = _Window()
        self._bad_steps = StepFilter(config, strategy, monitor)
        self._said_cut = False
        self._progress = Progress()

    def fit(self, first_step: int, last_step: int, progress: Progress) -> int:
        """Returns the number of steps done: last_step, or fewer where a stop was agreed (then a checkpoint is written).

        `progress` is what was counted before `first_step`; it goes on being counted in place.

        Raises:
            DivergenceError: too many steps were skipped.
        """
        self._progress = progress
        self._bad_steps.start(progress)
        batches = self._stream.batches(self._place(first_step), self._place(last_step))
        self._window = _Window()
        for step in range(first_step, last_step):
            self._instruments.at("data", step + 1)
            waited = time.perf_counter()
            fetched = _next(batches)
            self._window.data_wait_s += time.perf_counter() - waited
            self._window.paused_s += self._instruments.before(step + 1)
            stop = self._step(step, fetched, last_step)
            self._window.paused_s += self._instruments.after(step + 1)
            if self._after(step + 1, last_step, stop=stop):
                return step + 1
        return last_step

    def _place(self, step: int) -> int:
        """Which of the stream's global batches step `step` takes."""
        return step + self._progress.skipped_batches

    def _step(self, step: int, fetched: Batch | UserError, last_step: int) -> bool:
        """One optimizer step; returns whether some rank was asked to stop."""
        config, strategy = self._config, self._strategy
        _seed_step(config.run.seed, self._place(step), strategy.world.rank)
        self._instruments.at("collective", step + 1)
        met = time.perf_counter()
        batch, (expressions, images, cut, bad, stop) = self._agree(fetched)
        self._window.collective_s += time.perf_counter() - met
        self._count(expressions, images, cut)
        if bad:
            self._quarantine(step, batch)
        micro_batches = batch.split(config.train.accumulate)
        losses: dict[str, Tensor] = {}
        for number, micro in enumerate(micro_batches, start=1):
            with strategy.micro_batch(last=number == len(micro_batches)):
                self._instruments.at("forward", step + 1)
                sums = self._task.losses(strategy.module, micro.to(strategy.world.device))
                self._instruments.at("backward", step + 1)
                # Ranks' gradients are averaged: times their number, it is their sum, divided by all expressions.
                strategy.backward(sums["loss"] * (strategy.world.size / max(1.0, expressions)))
            for name, value in sums.items():
                losses[name] = losses.get(name, 0) + value.detach() / max(1.0, expressions)
        lr = learning_rate(step, last_step, config.optim, self._stream.order.steps_per_epoch)
        self._instruments.at("optimizer", step + 1)
        self._bad_steps.step(step, lr, losses["loss"], batch)
        self._average(step)
        if config.train.trace_batches:
            self._trace(step, batch)
        if (step + 1) % config.train.log_every == 0 or step + 1 == last_step or stop:
            self._instruments.at("metrics", step + 1)
            self._log(step, losses, lr)
        return bool(stop)

    def _average(self, step: int) -> None:
        """A step that was skipped counts too: which it was, only the device knows."""
        weight = average_weight(step, self._config.optim)
        if weight and self._strategy.average is not None:
            self._strategy.average.update(weight)

    def _agree(self, fetched: Batch | UserError) -> tuple[Batch, list[float]]:
        """The batch, and what all ranks' have together: expressions, images, cut ones, bad ones, stop requests.

        Raises:
            UserError: on every rank, what kept a batch from one of them, or a checkpoint from the disk.
        """
        counts = [0.0] * 4
        if isinstance(fetched, Batch):
            counts = [float(fetched.valid_BK.sum()), fetched.num_images, fetched.num_cut, len(fetched.bad)]
        lost = not isinstance(fetched, Batch)
        signs = float(self._stop.requested), float(lost), float(self._saver.failed())
        *sums, num_lost, num_failed = self._strategy.all_reduce_sum([*counts, *signs])
        if num_failed:
            self._saver.wait()
        if num_lost:
            problems = self._strategy.all_gather_object(fetched if lost else None)
            raise next(problem for problem in problems if problem is not None)
        assert isinstance(fetched, Batch), "else one is lost"
        return fetched, sums

    def _count(self, expressions: float, images: float, cut: float) -> None:
        window = self._window
        window.steps += 1
        window.images += images
        window.expressions += expressions
        window.cut += cut
        if cut and not self._said_cut:
            self._said_cut = True
            self._monitor.say(
                f"warning: expressions longer than the model's {self._task.shape.text_length} tokens lose their "
                "end; metrics.jsonl counts them (cut_expressions)"
            )
        self._progress.expressions_seen += int(expressions)

    def _quarantine(self, step: int, batch: Batch) -> None:
        """Names every broken record once, and stops the run where there are more of them than it may have."""
        config, known, num_images = self._config, self._progress.quarantined, self._stream.order.num_images
        for message in (m for rank in self._strategy.all_gather_object(batch.bad) for m in rank):
            if message in known:
                continue
            known.add(message)
            self._monitor.append("quarantine.jsonl", {"step": step + 1, "error": message})
            if len(known) > config.data.max_bad_fraction * num_images:
                raise UserError(
                    f"{message}\n{len(known)} broken images are more than data.max_bad_fraction="
                    f"{config.data.max_bad_fraction:g} of {num_images} allows; repair the shards "
                    "(python tools/shard.py verify names all of them) or raise it"
                )
            self._monitor.say(f"warning: another image takes its place: {message}")

    def _after(self, done: int, last_step: int, *, stop: bool) -> bool:
        """Checkpoint and evaluation where they are due; returns whether to stop here."""
        started = time.perf_counter()
        every = self._config.evaluate.every
        if done % self._config.checkpoint.every == 0 or done == last_step or stop:
            self._bad_steps.read()  # a checkpoint must not be written behind a run of bad steps that nobody looked at
            self._bad_steps.remember()
            self._instruments.at("checkpoint", done)
            self._saver.save(done, last=stop or done == last_step)
        stop = stop and done < last_step
        if every and done % every == 0 and not stop:
            self._instruments.at("evaluate", done)
            self._evaluate(done)
        self._window.paused_s += time.perf_counter() - started
        return stop

    def _log(self, step: int, losses: dict[str, Tensor], lr: float) -> None:
        names = sorted(losses)
        totals = self._strategy.all_reduce(torch.stack([losses[n].double() for n in names])).tolist()
        norm = self._bad_steps.read()
        window, now = self._window, time.perf_counter()
        seconds = max(1e-9, now - window.started - window.paused_s)
        order = self._stream.order
        self._monitor.metrics(
            {
                "step": step + 1,
                "epoch": order.epoch_of(self._place(step)),
                "images_seen": order.images_before(self._place(step + 1)),
                "expressions_seen": self._progress.expressions_seen,
                **dict(zip(names, totals, strict=True)),
                "grad_norm": norm,
                "lr": lr,
                "step_s": seconds / window.steps,
                "data_wait_s": window.data_wait_s / window.steps,
                "collective_s": window.collective_s / window.steps,
                "images_per_s": window.images / seconds,
                "expressions_per_s": window.expressions / seconds,
                **self._instruments.mfu(window.images / seconds),
                "cut_expressions": int(window.cut),
                "bad_steps": self._progress.bad_steps,
                "spikes": self._progress.spikes,
                "rollbacks": self._progress.rollbacks,
                "bad_images": len(self._progress.quarantined),
                "peak_memory_bytes": _peak_memory(self._strategy.world.device),
                **self._saver.figures(),
            }
        )
        self._window = _Window()

    def _trace(self, step: int, batch: Batch) -> None:
        ranks = self._strategy.gather_object((batch.image_ids, batch.expression_ids)) or []
        self._monitor.append(
            "batches.jsonl",
            {
                "step": step + 1,
                "epoch": self._stream.order.epoch_of(self._place(step)),
                "image_ids": [i for images, _ in ranks for i in images],
                "expression_ids": [e for _, expressions in ranks for e in expressions],
            },
        )


def _next(batches: Iterator[Batch]) -> Batch | UserError:
    """The next batch, or what keeps it away, as a value: the other ranks must hear of it, too."""
    try:
        return next(batches)
    except UserError as error:
        return error


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout draws from (seed, batch, rank), so a resumed run draws what the uninterrupted one would have drawn."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
