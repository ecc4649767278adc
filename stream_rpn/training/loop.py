"""The training loop: batches, schedule, averaging, early stop, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stream_rpn import models
from stream_rpn.cores import available_cores
from stream_rpn.evaluation.coco import CocoDataset, Sample
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import save_weights
from stream_rpn.rpn import RPN
from stream_rpn.training.batches import Batches
from stream_rpn.training.config import TrainConfig
from stream_rpn.training.history import History, draw_history
from stream_rpn.training.initialise import load_init
from stream_rpn.training.objective import Objective
from stream_rpn.training.recipe import write_recipe
from stream_rpn.training.state import read_state, restoring, write_state
from stream_rpn.training.validation import Validation

# Beyond these, threads that read images wait for each other.
MOST_WORKERS = 16
FAULTS_TOLD = 5
WARMUP_SHARE = 0.1


class Trained(NamedTuple):
    """What became of a run.

    Attributes:
        model: with the weights that were written, in eval mode.
        step: steps made, those before it was resumed included.
        total_steps: those that were planned.
        best_step: the step whose averaged weights these are.
        before: recall before the first step, by the names of `Recall.summary`; None without images
            to measure on.
        after: recall of the weights that were written.
        ended: "whole", "patience" or "stopped".
    """

    model: RPN
    step: int
    total_steps: int
    best_step: int
    before: dict[str, float] | None
    after: dict[str, float] | None
    ended: str


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Trains a model and writes its averaged weights to `config.output`.

    Where recall is measured, the weights are those of the measurement with the best AR@100, the one
    before the first step included: training never makes a model worse. Beside the output lie the
    recipe and, in `config.folder`, the last checkpoint, metrics.jsonl and curves.png.

    Args:
        config: the run.
        resume: go on from the last checkpoint; step for step, the losses are those of a run that
            was never interrupted (unless `minutes` ties the schedule to the clock, or the run was
            made longer).
        progress: called with every row that goes to metrics.jsonl; with how far checking and
            measuring are, "checked" or "measured" and "of"; and where `stop` is heeded, "stopping".
        stop: asked after every step whether to end here, in good order.

    Raises:
        StreamRPNError: data or files that do not fit or cannot be written, or a loss that is no
            longer finite; the last good checkpoint is kept then.
    """
    run = _Run(config, progress, stop)
    try:
        return run.run(resume)
    except OSError as error:
        what = f"'{error.filename or config.folder}' cannot be written ({error.strerror or error})"
        if run.step:
            what = (
                f"training stopped at step {run.step}: {what}; --resume goes on from step "
                f"{run.saved_step}"
            )
        raise StreamRPNError(what) from error
    except torch.OutOfMemoryError as error:
        raise StreamRPNError(
            f"training stopped at step {run.step}: the GPU has too little memory for "
            f"{config.batch_size} images of {run.batches.augmentation.size} pixels at a time; try "
            "half as many with --batch-size"
        ) from error


class _Best(NamedTuple):
    """The averaged weights that found most, and what they found."""

    score: float
    step: int
    weights: dict[str, Tensor]
    summary: dict[str, float]


class _Run:
    """The state of one run."""

    def __init__(
        self,
        config: TrainConfig,
        progress: Callable[[dict[str, Any]], None],
        stop: Callable[[], bool],
    ) -> None:
        self.config = config
        self.report = progress
        self.stop = stop
        self.workers = config.workers or min(available_cores(), MOST_WORKERS)
        self.data, validation = _datasets(config)
        self.val = None if validation is None else Validation(validation, config.val_limit)
        torch.manual_seed(config.seed)
        self.model = models.find(config.model).build()
        self.batches = Batches(self.data, config, self.model.input_spec, self.workers)
        self.objective = Objective(config, self.model)
        self.steps_per_epoch = math.ceil(len(self.data) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = self.saved_step = 0
        self.elapsed_seconds = 0.0
        self.before: dict[str, float] | None = None
        self.best: _Best | None = None
        self.scored_step = -1
        self.measurements_since_best = 0

    def run(self, resume: bool) -> Trained:
        config = self.config
        state = read_state(config) if resume else None
        if state is None:
            self.pretrained = load_init(self.model, config.init or config.model)
        else:
            with restoring(config):
                self.pretrained = set(state["pretrained"])
        self._prepare()
        self._check_images()
        config.folder.mkdir(parents=True, exist_ok=True)
        if state is not None:
            with restoring(config):
                self._restore(state)
        self.history = History(config.folder, None if state is None else self.step)
        write_recipe(config, config.recipe)
        try:
            if state is None:
                self._log(
                    step=0,
                    initialised=len(self.pretrained),
                    parameters=len(self.average),
                    train_images=len(self.data),
                    val_images=0 if self.val is None else len(self.val.dataset),
                )
            ended = self._train()
            return self._finish(ended)
        finally:
            self.history.close()

    def _prepare(self) -> None:
        config = self.config
        names = [name for name, _ in self.model.named_parameters()]
        for prefix in config.freeze:
            if not any(name.startswith(prefix) for name in names):
                raise StreamRPNError(
                    f"no parameter of {config.model} begins with '{prefix}', which is to be "
                    f"frozen; names are such as {names[0]} and {names[-1]}"
                )
        if all(name.startswith(config.freeze) for name in names):
            raise StreamRPNError("all parameters are frozen: there is nothing to train")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(config.freeze))
        self.model.to(config.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = self._make_optimizer()

    def _check_images(self) -> None:
        """Reads every image once, so that a bad one is told now and not after an hour."""
        sets = [self.data, *([] if self.val is None else [self.val.dataset])]
        total = sum(map(len, sets))
        faults = []
        every = chain.from_iterable(dataset.check(self.workers) for dataset in sets)
        for done, fault in enumerate(every, start=1):
            faults += [fault] if fault else []
            self.report({"checked": done, "of": total})
            if self.stop():
                raise KeyboardInterrupt
        if faults:
            told = "; ".join(faults[:FAULTS_TOLD])
            more = f"; and {len(faults) - FAULTS_TOLD} more" if len(faults) > FAULTS_TOLD else ""
            raise StreamRPNError(f"{len(faults)} of {total} images cannot be used: {told}{more}")

    def _train(self) -> str:
        """Makes the steps that are left; returns how it ended."""
        config = self.config
        if self.before is None and self.val is not None:
            self.before = self._measure(everything=True)
            self._save_checkpoint()
        started = monotonic() - self.elapsed_seconds
        with self.batches.start(self.step, self._progress) as batches:
            while self._progress(self.step) < 1:
                if self.stop():
                    if not self.step:
                        raise KeyboardInterrupt
                    self.report({"stopping": self.step})
                    return "stopped"
                if config.patience and self.measurements_since_best >= config.patience:
                    return "patience"
                row = self._train_step(*next(batches))
                self.elapsed_seconds = monotonic() - started
                self._log(**row, elapsed_seconds=round(self.elapsed_seconds, 2))
                if self.step % (config.val_every * self.steps_per_epoch) == 0:
                    if self.val is not None:
                        self._measure()
                    draw_history(config.folder)
                if self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
        return "whole"

    def _finish(self, ended: str) -> Trained:
        """Measures the last weights, takes the best ones and writes them."""
        config = self.config
        if self.val is not None and self.scored_step != self.step:
            # First of all, as what is measured now may be stopped, too.
            self._save_checkpoint()
            self._measure()
        self._save_checkpoint()
        self._load(self.average)
        best_step, after = self.step, None
        if self.val is not None and self.best is not None:
            self._load(self.best.weights)
            best_step, after = self.best.step, self.best.summary
            if self.val.limit < len(self.val.dataset):
                after, _ = self.val.measure(self.model, everything=True, progress=self._measured)
                self._log(step=best_step, epoch=best_step / self.steps_per_epoch, **after)
        save_weights(self.model, config.output, model=config.model, half=config.half)
        draw_history(config.folder)
        return Trained(
            self.model.eval(), self.step, self.total_steps, best_step, self.before, after, ended
        )

    def _train_step(self, images: Tensor, samples: list[Sample]) -> dict[str, Any]:
        """Makes one step and returns its row of metrics."""
        config = self.config
        rate = self._set_learning_rate()
        losses = self.objective(images, samples, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        (losses.objectness + losses.box).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        row = {
            "step": self.step + 1,
            "epoch": (self.step + 1) / self.steps_per_epoch,
            "objectness_loss": losses.objectness.item(),
            "box_loss": losses.box.item(),
            "gradient_norm": norm.item(),
            "learning_rate": rate,
        }
        for name in ("objectness_loss", "box_loss", "gradient_norm"):
            if not math.isfinite(row[name]):
                raise StreamRPNError(
                    f"training stopped at step {row['step']}: {name} is {row[name]}; the last good "
                    f"checkpoint is in {config.folder}; try a learning rate under "
                    f"{config.learning_rate:g}"
                )
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return row

    def _progress(self, step: int) -> float:
        """Returns how much of the run is over before a step, in [0, 1]."""
        done = step / self.total_steps
        if self.config.minutes:
            done = max(done, self.elapsed_seconds / (60 * self.config.minutes))
        return min(done, 1.0)

    def _set_learning_rate(self) -> float:
        """Linear warm-up, then a half cosine down to a hundredth of the peak."""
        config = self.config
        progress = self._progress(self.step)
        factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        warm = (self.step + 1) / max(config.warmup_steps, 1)
        factor *= min(1.0, max(warm, progress / WARMUP_SHARE))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return config.learning_rate * factor

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        together: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                factor = config.backbone_rate if name in self.pretrained else 1.0
                decay = config.weight_decay if parameter.ndim > 1 else 0.0
                together.setdefault((factor * config.learning_rate, decay), []).append(parameter)
        groups = [
            {"params": parameters, "peak": rate, "weight_decay": decay}
            for (rate, decay), parameters in together.items()
        ]
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=config.learning_rate)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, or it would remember the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])

    def _measure(self, *, everything: bool = False) -> dict[str, float]:
        """Measures the averaged weights, keeps them if they are the best, returns their recall."""
        assert self.val is not None, "there are images to measure on"
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._load(self.average)
        try:
            summary, score = self.val.measure(
                self.model, everything=everything, progress=self._measured
            )
        finally:
            self._load(trained)
        self._log(step=self.step, epoch=self.step / self.steps_per_epoch, **summary)
        self.scored_step = self.step
        self.measurements_since_best += 1
        if self.best is None or score > self.best.score:
            weights = {name: tensor.clone() for name, tensor in self.average.items()}
            self.best = _Best(score, self.step, weights, summary)
            self.measurements_since_best = 0
        return summary

    def _measured(self, done: int, of: int) -> None:
        self.report({"measured": done, "of": of})

    def _log(self, **row: Any) -> None:
        self.history.write(row)
        self.report(row)

    def _save_checkpoint(self) -> None:
        state = {
            "model": self.model.state_dict(),
            # By parameter, in the module's own order of channels.
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "pretrained": sorted(self.pretrained),
            "step": self.step,
            "elapsed_seconds": self.elapsed_seconds,
            "before": self.before,
            "best": None if self.best is None else self.best._asdict(),
            "scored_step": self.scored_step,
            "measurements_since_best": self.measurements_since_best,
        }
        write_state(self.config, state)
        self.saved_step = self.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average = {
            name: state["average"][name].reshape(average.shape)
            for name, average in self.average.items()
        }
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved_step = int(state["step"])
        self.elapsed_seconds = float(state["elapsed_seconds"])
        self.before = state["before"]
        self.best = None if state["best"] is None else _Best(**state["best"])
        self.scored_step = state["scored_step"]
        self.measurements_since_best = state["measurements_since_best"]


def _datasets(config: TrainConfig) -> tuple[CocoDataset, CocoDataset | None]:
    """Returns the images to train on and those to measure on."""
    data = CocoDataset(config.annotations, config.images)
    if len(data) == 0:
        raise StreamRPNError(f"{config.annotations}: there are no images to train on")
    if not any(map(len, data.ground_truth().values())):
        raise StreamRPNError(f"{config.annotations}: there is no object to train on")
    if config.val_annotations:
        validation = CocoDataset(config.val_annotations, config.val_images or config.images)
        if not any(map(len, validation.ground_truth().values())):
            raise StreamRPNError(f"{config.val_annotations}: there is no object to be found")
        return data, validation
    if not config.hold_out:
        return data, None
    rest, held_out = data.split(config.hold_out, config.seed)
    return (rest, held_out) if len(held_out) else (data, None)
