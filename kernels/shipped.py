"""What a Triton file ships: its kernels, with the types and constants they are launched with.

`bench.aot` compiles every entry ahead of time, without a GPU, so that what the interpreter accepts
and the compiler refuses is found before a GPU finds it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Shipped(NamedTuple):
    """One compiled form of a kernel.

    Attributes:
        name: unique among all kernels, e.g. "nms_walk/1024".
        kernel: the function decorated with triton.jit.
        signature: Triton types by argument name, "constexpr" for constants, tuples for tuples.
        constants: values of the constexpr arguments by name.
        num_warps: warps a program runs with.
        aligned: pointers that are never other than multiples of 16, which a launch tells Triton.
    """

    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int
    aligned: Sequence[str] = ()
