"""Global, shared and parameter memory: where an access lands, whether it may, and what it does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from torch import Tensor

from tests.ptx import arithmetic
from tests.ptx.parse import UNSIGNED, Fault
from tests.ptx.programs import POISON, Active, Programs
from tests.ptx.races import Shadow

Array = np.ndarray
# Spans of memory begin at multiples of this here, so that granules of any size do.
ALIGNMENT = 16


class Memory:
    """Bytes with a shadow; `_locate` says where an address lies.

    Args:
        data: the bytes.
        granule: the bytes of the smallest access that the kernel makes.
    """

    def __init__(self, data: Array, granule: int) -> None:
        self._views = {size: data.view(dtype) for size, dtype in UNSIGNED.items()}
        self._granule = granule
        self._shadow = Shadow(len(data) // granule)

    def _locate(self, programs: Programs, active: Active, addresses: Array, nbytes: int) -> Array:
        """Returns the places of accesses in the data, in bytes."""
        raise NotImplementedError

    def _placed(
        self, programs: Programs, active: Active, addresses: Array, size: int, count: int
    ) -> Array:
        nbytes = size * count
        if (addresses & (nbytes - 1)).any():
            wrong = addresses[addresses % nbytes != 0][0]
            raise Fault(f"address {wrong:#x} is no multiple of {nbytes} bytes")
        return self._locate(programs, active, addresses, nbytes)

    def _granules(self, places: Array, size: int) -> Iterable[Array]:
        first = places // self._granule
        return (first + more for more in range(size // self._granule))

    def load(
        self, programs: Programs, active: Active, addresses: Array, size: int, count: int
    ) -> list[Array]:
        """Returns `count` neighbours of `size` bytes each, unsigned."""
        data = self._placed(programs, active, addresses, size, count)
        stamp = programs.stamp(active)
        values = []
        for number in range(count):
            for granules in self._granules(data + number * size, size):
                self._check_initialised(granules)
                self._shadow.read(granules, stamp)
            values.append(self._views[size][data // size + number])
        return values

    def _check_initialised(self, granules: Array) -> None:
        pass

    def store(
        self, programs: Programs, active: Active, addresses: Array, values: list[Array]
    ) -> None:
        size = values[0].dtype.itemsize
        data = self._placed(programs, active, addresses, size, len(values))
        stamp = programs.stamp(active)
        view = self._views[size]
        for number, value in enumerate(values):
            places = data // size + number
            unchanged = view[places] == value
            for granules in self._granules(data + number * size, size):
                self._shadow.write(granules, stamp, unchanged)
            view[places] = value
            if (view[places] != value).any():
                raise Fault("threads write different values to one place at once")

    def update(
        self,
        programs: Programs,
        active: Active,
        addresses: Array,
        operation: Callable[[Array, Array], Array],
        values: Array,
        *,
        is_sum: bool,
    ) -> Array:
        """Applies an atomic operation, lane after lane; returns what each found.

        Args:
            operation: from what is there and a lane's value to what is to be there.
            values: of the type that it works on.
            is_sum: it adds integers, all lanes of which can be done at once.
        """
        size = values.dtype.itemsize
        data = self._placed(programs, active, addresses, size, 1)
        for granules in self._granules(data, size):
            self._check_initialised(granules)
            self._shadow.add(granules, programs.stamp(active))
        view = self._views[size].view(values.dtype)
        places = data // size
        if is_sum:
            before = arithmetic.sums_before(places, values)
            found = view[places] + before
            np.add.at(view, places, values)
            return found
        found = np.empty_like(values)
        left = np.arange(len(places))
        while len(left):
            _, first = np.unique(places[left], return_index=True)
            turn = left[first]
            found[turn] = view[places[turn]]
            view[places[turn]] = operation(found[turn], values[turn])
            left = np.delete(left, first)
        return found


class SharedMemory(Memory):
    """The shared memories of a batch of programs, one behind another."""

    def __init__(self, programs: int, nbytes: int, granule: int) -> None:
        self._nbytes = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        self._limit = nbytes
        super().__init__(np.full(programs * self._nbytes, POISON, np.uint8), granule)

    def _locate(self, programs: Programs, active: Active, addresses: Array, nbytes: int) -> Array:
        outside = (addresses < 0) | (addresses + nbytes > self._limit)
        if outside.any():
            raise Fault(
                f"address {addresses[outside][0]:#x} is outside of the {self._limit} bytes of "
                "shared memory"
            )
        return programs.slot[active.index] * self._nbytes + addresses

    def _check_initialised(self, granules: Array) -> None:
        if not self._shadow.initialised(granules).all():
            raise Fault("shared memory is read that nobody has written")


class GlobalMemory(Memory):
    """The tensors of a launch, at their addresses: a copy, which `write_back` puts into them.

    Args:
        tensors: all that may be touched.
        granule: see `Memory`.
    """

    def __init__(self, tensors: Iterable[Tensor], granule: int) -> None:
        spans: list[list[int]] = []
        for first, end in sorted(_span(tensor) for tensor in tensors if tensor.numel()):
            if spans and first < spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([first, end])
        self._first = np.array([first for first, _ in spans], np.int64)
        self._end = np.array([end for _, end in spans], np.int64)
        aligned = self._first // ALIGNMENT * ALIGNMENT
        sizes = -(-(self._end - aligned) // ALIGNMENT) * ALIGNMENT
        # From an address to a place in the data, by span.
        self._shift = aligned - (np.cumsum(sizes) - sizes)
        self._data = np.zeros(int(sizes.sum()), np.uint8)
        for theirs, ours in self._spans():
            ours[:] = theirs
        super().__init__(self._data, granule)

    def write_back(self) -> None:
        for theirs, ours in self._spans():
            theirs[:] = ours

    def _spans(self) -> Iterator[tuple[Array, Array]]:
        """Yields the bytes of each span where the tensors are and here."""
        for first, end, shift in zip(self._first, self._end, self._shift, strict=True):
            raw = (ctypes.c_uint8 * int(end - first)).from_address(int(first))
            yield np.ctypeslib.as_array(raw), self._data[first - shift : end - shift]

    def _locate(self, programs: Programs, active: Active, addresses: Array, nbytes: int) -> Array:
        if not len(self._first):
            raise Fault("the launch has no tensors")
        # Most instructions touch one tensor, and often the one that was touched before.
        low, high = addresses.min(), addresses.max() + nbytes
        span: int | Array = int(np.searchsorted(self._first, low, side="right")) - 1
        if span < 0 or high > self._end[span]:
            span = np.searchsorted(self._first, addresses, side="right") - 1
            outside = (span < 0) | (addresses + nbytes > self._end[span])
            if outside.any():
                self._refuse(int(addresses[outside][0]))
        return addresses - self._shift[span]

    def _refuse(self, address: int) -> None:
        distance = np.where(address < self._first, self._first - address, address - self._end + 1)
        nearest = int(np.argmin(distance))
        side = "before" if address < self._first[nearest] else "after"
        size = int(self._end[nearest] - self._first[nearest])
        raise Fault(
            f"address {address:#x} is in no tensor: {int(distance[nearest])} bytes {side} one of "
            f"{size} bytes"
        )


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size()
