"""The training loop: batches, schedule, averaging, checkpoints, metrics."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stream_rpn import anchors as anchor_ops
from stream_rpn import models
from stream_rpn.evaluation.coco import CocoDataset, Sample
from stream_rpn.evaluation.propose import propose_dataset
from stream_rpn.evaluation.recall import LIMITS, Recall, by_image
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import save_weights
from stream_rpn.rpn import RPN
from stream_rpn.training import targets
from stream_rpn.training.augment import augment
from stream_rpn.training.config import TrainConfig
from stream_rpn.training.history import draw_history
from stream_rpn.training.initialise import load_init
from stream_rpn.training.losses import Losses, classic_losses, flatten_head, quality_losses


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
) -> RPN:
    """Trains a model, writes its averaged weights to `config.output` and returns it.

    Beside the output, in `config.folder`, lie the last checkpoint, metrics.jsonl and curves.png.

    Args:
        config: the run.
        resume: go on from the last checkpoint; step for step, the losses are those of a run that
            was never interrupted (unless `minutes` ties the schedule to the clock).
        progress: called with every row that goes to metrics.jsonl.

    Raises:
        StreamRPNError: data or files that do not fit, or a loss that is no longer finite; the last
            good checkpoint is kept then.
    """
    return _Run(config, progress).run(resume)


class _Run:
    """The state of one run."""

    def __init__(self, config: TrainConfig, progress: Callable[[dict[str, Any]], None]) -> None:
        self.config = config
        self.report = progress
        self.data = CocoDataset(config.annotations, config.images)
        if len(self.data) == 0:
            raise StreamRPNError(f"{config.annotations}: there are no images to train on")
        if not any(map(len, self.data.ground_truth().values())):
            raise StreamRPNError(f"{config.annotations}: there is no object to train on")
        self.val = (
            CocoDataset(config.val_annotations, config.val_images or config.images)
            if config.val_annotations
            else None
        )
        torch.manual_seed(config.seed)
        self.model = models.find(config.model).build()
        self.pretrained = load_init(self.model, config.init) if config.init else set()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(config.frozen))
        self.model.to(config.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer = self._make_optimizer()
        self.steps_per_epoch = math.ceil(len(self.data) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.elapsed_seconds = 0.0
        self._anchors: dict[tuple[int, ...], list[Tensor]] = {}

    def run(self, resume: bool) -> RPN:
        config = self.config
        config.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()
        else:
            (config.folder / "metrics.jsonl").unlink(missing_ok=True)
            if self.pretrained:
                # Another model's weights are taken over where they fit: how many must be seen.
                parameters = sum(1 for _ in self.model.parameters())
                self._log(step=0, initialised=len(self.pretrained), parameters=parameters)
        started = time.monotonic() - self.elapsed_seconds
        with self._batches() as batches:
            while self._progress(self.step) < 1:
                row = self._train_step(*next(batches))
                self.elapsed_seconds = time.monotonic() - started
                self._log(**row, elapsed_seconds=round(self.elapsed_seconds, 2))
                if self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
                if self.step % (config.val_every * self.steps_per_epoch) == 0:
                    self._measure(config.val_limit)
        self._save_checkpoint()
        self._measure(None)
        self._exchange_average()
        save_weights(self.model, config.output, model=config.model, half=config.half)
        return self.model.eval()

    def _train_step(self, images: Tensor, samples: list[Sample]) -> dict[str, Any]:
        """Makes one step and returns its row of metrics."""
        config = self.config
        rate = self._set_learning_rate()
        losses = self._losses(images, samples)
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
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress(self.step)))
        factor = 0.01 + 0.99 * cosine
        factor *= min(1.0, (self.step + 1) / max(config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return config.learning_rate * factor

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                factor = config.backbone_rate if name in self.pretrained else 1.0
                rate = config.learning_rate * factor
                decay = config.weight_decay if parameter.ndim > 1 else 0.0
                groups.append({"params": [parameter], "peak": rate, "weight_decay": decay})
        if config.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=config.learning_rate)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[Tensor, list[Sample]]]]:
        """Gives the batches from the current step on, made ahead in a thread.

        Every image has its own random generator, seeded by its position in the run, so that a
        resumed run sees the images that an uninterrupted one would have seen.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as executor:
            ahead: deque[Future[tuple[Tensor, list[Sample]]]] = deque()

            def generate() -> Iterator[tuple[Tensor, list[Sample]]]:
                step = self.step
                while True:
                    while len(ahead) < 3:
                        ahead.append(executor.submit(self._make_batch, step))
                        step += 1
                    yield ahead.popleft().result()

            try:
                yield generate()
            finally:
                for future in ahead:
                    future.cancel()

    def _make_batch(self, step: int) -> tuple[Tensor, list[Sample]]:
        config = self.config
        settings = config.augmentation
        if self._progress(step) > 1 - config.plain_fraction:
            settings = replace(settings, mosaic=0.0)
        samples = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            epoch, place = divmod(position, len(self.data))
            order = np.random.default_rng((config.seed, epoch)).permutation(len(self.data))
            rng = np.random.default_rng((config.seed, 1, position))
            samples.append(augment(self.data, int(order[place]), settings, rng))
        pixels = torch.from_numpy(np.stack([sample.image for sample in samples]))
        spec = self.model.input_spec
        mean, std = (torch.tensor(values) * 255 for values in (spec.mean, spec.std))
        images = ((pixels - mean) / std).permute(0, 3, 1, 2)
        return images if config.channels_last else images.contiguous(), samples

    def _losses(self, images: Tensor, samples: list[Sample]) -> Losses:
        config, device = self.config, self.config.device
        kind = torch.device(device).type
        with torch.autocast(kind, torch.bfloat16, enabled=config.mixed_precision):
            maps = list(self.model.features(images.to(device)).values())
            objectness, deltas = self.model.head(maps)
        logits, flat_deltas = flatten_head(objectness, deltas, self.model.head.num_anchors)
        levels = self._level_anchors(images, maps)
        anchors = torch.cat(levels)
        gt_boxes = [torch.from_numpy(sample.boxes).to(device) for sample in samples]
        matches = [
            targets.ignore_crowd(
                self._match(levels, boxes, images),
                anchors,
                torch.from_numpy(sample.crowd_boxes).to(device),
            )
            for sample, boxes in zip(samples, gt_boxes, strict=True)
        ]
        if config.assignment == "quality":
            return quality_losses(logits, flat_deltas, anchors, matches, gt_boxes)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        chosen = [
            targets.sample(
                match,
                config.batch_size_per_image,
                config.positive_fraction,
                permutation=lambda n: torch.randperm(n, generator=generator),
            )
            for match in matches
        ]
        return classic_losses(logits, flat_deltas, anchors, matches, gt_boxes, chosen)

    def _match(self, levels: list[Tensor], gt_boxes: Tensor, images: Tensor) -> Tensor:
        config = self.config
        if config.assignment == "quality":
            return targets.match_atss(levels, gt_boxes, num_anchors=self.model.head.num_anchors)
        anchors = torch.cat(levels)
        take_part = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if config.ignore_crossing:
            take_part = anchor_ops.inside(anchors, (images.shape[-2], images.shape[-1]))
        match = torch.full((len(anchors),), targets.IGNORED, device=anchors.device)
        match[take_part] = targets.match_classic(
            anchors[take_part],
            gt_boxes,
            fg_iou_thresh=config.fg_iou_thresh,
            bg_iou_thresh=config.bg_iou_thresh,
        )
        return match

    def _level_anchors(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        key = tuple(images.shape[-2:])
        if key not in self._anchors:
            strides = self.model.strides(images, maps)
            self._anchors[key] = [
                anchor_ops.grid(base, (m.shape[-2], m.shape[-1]), stride)
                for base, m, stride in zip(self.model.base_anchors, maps, strides, strict=True)
            ]
        return self._anchors[key]

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, or it would remember the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def _exchange_average(self) -> None:
        """Swaps the weights and their average."""
        for name, parameter in self.model.named_parameters():
            other = self.average[name].clone()
            self.average[name].copy_(parameter)
            parameter.copy_(other)

    def _measure(self, limit: int | None) -> None:
        """Measures the averaged weights on the first `limit` validation images, or on all."""
        if self.val is not None:
            self._exchange_average()
            spec = self.model.proposal_spec
            self.model.override(post_nms_top_n=max(LIMITS))
            predictions = by_image(propose_dataset(self.model, self.val, limit=limit))
            self.model.proposal_spec = spec
            self._exchange_average()
            truth = self.val.ground_truth()
            recall = Recall(predictions, {image_id: truth[image_id] for image_id in predictions})
            self._log(step=self.step, epoch=self.step / self.steps_per_epoch, **recall.summary())
        draw_history(self.config.folder)

    def _log(self, **row: Any) -> None:
        with (self.config.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row)

    def _save_checkpoint(self) -> None:
        path = self.config.folder / "last.pt"
        beside = path.with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_seconds": self.elapsed_seconds,
                "config": json.dumps(asdict(self.config)),
            },
            beside,
        )
        os.replace(beside, path)

    def _resume(self) -> None:
        path = self.config.folder / "last.pt"
        if not path.is_file():
            raise StreamRPNError(f"there is no checkpoint '{path}' to resume from")
        state = torch.load(path, map_location=self.config.device, weights_only=True)
        then, now = json.loads(state["config"]), json.loads(json.dumps(asdict(self.config)))
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            raise StreamRPNError(
                f"the run in {self.config.folder} had another {', '.join(changed)}; resume it with "
                "the options it was started with"
            )
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_seconds = state["step"], state["elapsed_seconds"]
        # Rows behind the checkpoint will be written again.
        metrics = self.config.folder / "metrics.jsonl"
        rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= self.step]
        metrics.write_text("".join(kept), encoding="utf-8")
