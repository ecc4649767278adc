"""Batches on their way to a GPU and back: pinned slots, copy streams, events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stream_rpn import preprocess
from stream_rpn.frame import Frame
from stream_rpn.input_spec import InputSpec, input_shape
from stream_rpn.kernels.preprocess import PlaneLayout
from stream_rpn.timing import StageTimes


class HostStream:
    """Stands for a stream where there are none: on a CPU every call has finished when it returns.

    With it the code below runs, and is tested, on machines without a GPU.
    """

    def wait_event(self, event: Any) -> None:  # noqa: D102
        pass

    def synchronize(self) -> None:  # noqa: D102
        pass


class HostEvent:
    """Stands for a CUDA event next to a `HostStream`; keeps the host's time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self, stream: Any) -> None:  # noqa: D102
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:  # noqa: D102
        pass

    def elapsed_time(self, end: HostEvent) -> float:  # noqa: D102
        return (end.seconds - self.seconds) * 1e3


def new_stream(device: torch.device, *, priority: int = 0) -> Any:
    """Returns a stream of a GPU; it is not ordered with any other one.

    torch has 32 of each priority and hands them out in turn, so that those made long after one
    another may be the same: they do no harm to each other where all they do is copying.

    Args:
        device: where it is.
        priority: -1 for one that goes before others, and is none of those of priority 0.
    """
    if device.type == "cuda":
        return torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
    return HostStream()


def new_event(device: torch.device) -> Any:
    """Returns an event that can be timed."""
    if device.type == "cuda":
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return HostEvent()


def using_stream(stream: Any) -> AbstractContextManager[Any]:
    """Returns a context in which this thread's GPU work goes to `stream`."""
    return nullcontext() if isinstance(stream, HostStream) else torch.cuda.stream(stream)


class PackedBatch(NamedTuple):
    """A batch as `kernels.preprocess` reads it.

    Attributes:
        data: [bytes] uint8, the planes of all frames.
        table: [B, 12] int64, a `PlaneLayout` a row.
        matrix: [B, 3, 4] float32.
    """

    data: Tensor
    table: Tensor
    matrix: Tensor


# Uploaded batches that wait for the network, while it computes on one and one is being filled.
AHEAD = 1
NUM_SLOTS = AHEAD + 2


class Slot:
    """Room for one batch on its way to the device: pinned memory, and its counterpart there.

    Args:
        device: where batches go.
        batch: frames in one.
        spec: what the network wants of a frame.
        copies: the stream that copies there.

    Two threads pass it on, and only its owner touches it: the uploading thread from `begin` to
    `send`, the network's from then to `release`. Two events order what the device does with it:

    * `uploaded`, on the copy stream after the copies of `send`: the network's stream waits for it
      before it reads, and the host before it fills the pinned memory again;
    * `consumed`, on the network's stream after its last read: whatever writes the slot's device
      memory next waits for it.
    """

    def __init__(self, device: torch.device, batch: int, spec: InputSpec, copies: Any) -> None:
        self._on, self._batch, self._spec = device, batch, spec
        self._copies = copies
        # FFmpeg fills its surfaces on the device's legacy stream, which no other is ordered with.
        # What fills a surface anew once its frame has gone comes after the copy from it there.
        self._decoding = (
            torch.cuda.default_stream(device) if device.type == "cuda" else self._copies
        )
        self.started, self.uploaded = new_event(device), new_event(device)
        self._copied, self._consumed = new_event(device), new_event(device)
        self._busy = False
        self._allocate(1)
        self.frames: list[Frame] = []
        self.shape = (0, 0)
        self.capacity = 0
        self._used = 0
        self._surfaces = False

    def _allocate(self, num_bytes: int) -> None:
        pin = self._on.type == "cuda"
        fields = len(PlaneLayout._fields)
        self._host = PackedBatch(
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pin),
            torch.empty(self._batch, fields, dtype=torch.int64, pin_memory=pin),
            torch.empty(self._batch, 3, 4, pin_memory=pin),
        )
        # From the copy stream's own memory: no other stream's pending work can be on it.
        with using_stream(self._copies):
            self._device = PackedBatch(*(torch.empty_like(t, device=self._on) for t in self._host))

    def begin(self, first: Frame) -> None:
        """Starts a batch that begins with `first`; waits until the slot's last one has left it."""
        if self._busy:
            raise RuntimeError("a batch was begun in a slot whose last batch was not yet released")
        self._busy = True
        self.uploaded.synchronize()
        size = self._batch * preprocess.packed_bytes(first)
        # Powers of two: few different sizes, as a captured graph has a copy of its own of each.
        self.capacity = max(1 << 20, 1 << (size - 1).bit_length())
        if self.capacity > len(self._host.data):
            self._consumed.synchronize()
            self._allocate(self.capacity)
        self.frames, self._used = [], 0
        self.shape, self._surfaces = input_shape(first, self._spec), _is_surface(first)
        self._copies.wait_event(self._consumed)
        if self._surfaces:
            self._decoding.wait_event(self._consumed)

    def takes(self, frame: Frame) -> bool:
        """Tells whether the batch has room for `frame` and is of its kind."""
        return (
            len(self.frames) < self._batch
            and input_shape(frame, self._spec) == self.shape
            and _is_surface(frame) == self._surfaces
            and self._used + preprocess.packed_bytes(frame) <= self.capacity
        )

    def add(self, frame: Frame) -> None:
        """Copies a frame's planes: into pinned memory, or a surface within the device's memory."""
        row = len(self.frames)
        with using_stream(self._decoding):
            self._used = preprocess.pack(
                [frame],
                self._spec,
                (self._device if self._surfaces else self._host).data,
                self._host.table[row : row + 1],
                self._host.matrix[row : row + 1],
                self._used,
            )
        self.frames.append(frame)

    @property
    def full(self) -> bool:
        """Whether the batch is complete."""
        return len(self.frames) == self._batch

    def send(self) -> None:
        """Starts the copies to the device; rows without a frame repeat the last one."""
        count = len(self.frames)
        for tensor in (self._host.table, self._host.matrix):
            tensor[count:] = tensor[count - 1]
        # New ones for each batch: the network's thread reads the times of the last one later.
        self.started, self.uploaded = new_event(self._on), new_event(self._on)
        if self._surfaces:
            self._copied.record(self._decoding)
            self._copies.wait_event(self._copied)
        with using_stream(self._copies):
            self.started.record(self._copies)
            if not self._surfaces:
                self._device.data[: self._used].copy_(
                    self._host.data[: self._used], non_blocking=True
                )
            self._device.table.copy_(self._host.table, non_blocking=True)
            self._device.matrix.copy_(self._host.matrix, non_blocking=True)
            self.uploaded.record(self._copies)

    def receive(self, stream: Any) -> PackedBatch:
        """Returns the batch on the device, for work on `stream` up to `release`."""
        stream.wait_event(self.uploaded)
        return PackedBatch(self._device.data[: self._used], self._device.table, self._device.matrix)

    def release(self, stream: Any) -> None:
        """Gives the slot back, once what was given to `stream` so far has run."""
        self._consumed.record(stream)
        self._busy = False

    def sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of every frame as resized, without padding."""
        rows = self._host.table[: len(self.frames), -2:].tolist()
        return [(height, width) for height, width in rows]

    def clear(self) -> None:
        """Lets go of a batch that nobody will release; nothing may be under way."""
        self.frames, self._busy = [], False


class Ring:
    """The slots of one source, filled in turn, and the stream that copies to them.

    The thread that uploads and that of the network hold it, each until it `leaves`.
    """

    def __init__(self, device: torch.device, batch: int, spec: InputSpec) -> None:
        self.spec = spec
        self._copies = new_stream(device)
        self.slots = [Slot(device, batch, spec, self._copies) for _ in range(NUM_SLOTS)]
        self._holders = 2

    def synchronize(self) -> None:
        """Waits until no copy is under way."""
        self._copies.synchronize()

    def leave(self) -> bool:
        """Lets go of it for one of the two; returns whether it is free again."""
        self._holders -= 1
        if self._holders:
            return False
        self._holders = 2
        for slot in self.slots:
            slot.clear()
        return True


def upload(
    frames: Iterable[Frame | None], ring: Ring, times: StageTimes, *, keep_images: bool
) -> Iterator[Slot]:
    """Yields batches of consecutive frames of one padded input shape, on their way to the device.

    Slots are used in turn. The consumer must release a batch before it asks for the next; with at
    most AHEAD batches in a queue between, NUM_SLOTS slots suffice: while one is filled, AHEAD wait,
    and one is the consumer's. An exception of `frames` is raised after the frames before it.

    Args:
        frames: decoded frames, in the host's memory or as CUDA surfaces of the same device; `None`
            among them ends a batch before it is full.
        ring: its slots are all free.
        times: gets the time that packing takes, per frame, as "pack".
        keep_images: leave the decoded image with each frame once its planes have been copied.
    """
    turn = itertools.cycle(ring.slots)
    slot: Slot | None = None
    try:
        for frame in frames:
            if slot is not None and (frame is None or not slot.takes(frame)):
                slot.send()
                yield slot
                slot = None
            if frame is None:
                continue
            if slot is None:
                free = next(turn)
                free.begin(frame)
                slot = free
            with times.measure("pack"):
                slot.add(frame)
            if not keep_images:
                frame.image = None  # type: ignore[assignment]  # so that the decoder may reuse it
            del frame
            if slot.full:
                slot.send()
                yield slot
                slot = None
    except Exception:
        if slot is not None and slot.frames:
            slot.send()
            yield slot
        raise
    else:
        if slot is not None:
            slot.send()
            yield slot
    finally:
        ring.synchronize()


class Download:
    """Tensors on their way to the host, from the current stream, without waiting for it."""

    def __init__(self, tensors: Iterable[Tensor], stream: Any, device: torch.device) -> None:
        pin = device.type == "cuda"
        self._host = []
        for tensor in tensors:
            host = torch.empty_like(tensor, device="cpu", pin_memory=pin)
            self._host.append(host.copy_(tensor, non_blocking=True))
        self._done = new_event(device)
        self._done.record(stream)

    def wait(self) -> list[Tensor]:
        """Returns the tensors once they have arrived, in pageable memory: results may live long."""
        self._done.synchronize()
        return [tensor.clone() for tensor in self._host]


def _is_surface(frame: Frame) -> bool:
    return frame.image.sw_format is not None
