"""The batches of a run, made ahead in threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stream_rpn.evaluation.coco import CocoDataset, Sample
from stream_rpn.input_spec import InputSpec
from stream_rpn.training.augment import augment
from stream_rpn.training.config import TrainConfig

# Square training images are a multiple of this, as the strides of most models are.
SIZE_STEP = 32


class Batches:
    """Makes the batch of any step, the same one each time.

    Args:
        dataset: the images.
        config: the run.
        spec: what the network wants of an image.
        workers: threads.
    """

    def __init__(
        self, dataset: CocoDataset, config: TrainConfig, spec: InputSpec, workers: int
    ) -> None:
        self.data = dataset
        self.config = config
        self.spec = spec
        self.workers = workers
        size = config.augmentation.size or math.ceil(spec.min_size / SIZE_STEP) * SIZE_STEP
        self.augmentation = replace(config.augmentation, size=size)

    @contextmanager
    def start(
        self, step: int, progress: Callable[[int], float]
    ) -> Iterator[Iterator[tuple[Tensor, list[Sample]]]]:
        """Gives the batches from a step on, made ahead in threads.

        Every image has its own random generator, seeded by its position in the run, so that a
        resumed run sees the images that an uninterrupted one would have seen.

        Args:
            step: the first.
            progress: tells how much of the run is over before a step, in [0, 1].
        """
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as executor:
            ahead: deque[Future[tuple[Tensor, list[Sample]]]] = deque()

            def generate() -> Iterator[tuple[Tensor, list[Sample]]]:
                following = step
                while True:
                    while len(ahead) < self.workers + 2:
                        ahead.append(executor.submit(self.make, following, progress))
                        following += 1
                    yield ahead.popleft().result()

            try:
                yield generate()
            finally:
                for future in ahead:
                    future.cancel()

    def make(self, step: int, progress: Callable[[int], float]) -> tuple[Tensor, list[Sample]]:
        """Returns the images [B, 3, size, size] of a step, normalised, and what they show."""
        config = self.config
        settings = self.augmentation
        if progress(step) > 1 - config.plain_fraction:
            settings = replace(settings, mosaic=0.0)
        samples = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            epoch, place = divmod(position, len(self.data))
            order = np.random.default_rng((config.seed, epoch)).permutation(len(self.data))
            rng = np.random.default_rng((config.seed, 1, position))
            samples.append(augment(self.data, int(order[place]), settings, rng))
        pixels = torch.from_numpy(np.stack([sample.image for sample in samples]))
        mean, std = (torch.tensor(values) * 255 for values in (self.spec.mean, self.spec.std))
        images = ((pixels - mean) / std).permute(0, 3, 1, 2)
        return images if config.channels_last else images.contiguous(), samples
