"""What a machine or its limits do not give: memory, threads, open files, room on the disk."""

from __future__ import annotations

import errno

# Of a failed allocation: torch's, its overflow of sizes, C++'s, the dynamic loader's, Python's of a
# thread, which has no memory for its stack.
_OF_MEMORY = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "bad_alloc",
    "failed to map segment",
    "cannot allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
)

_SENTENCES = {
    errno.ENOMEM: "the memory is full; a smaller --batch or --size takes less, `ulimit -v` limits "
    "what a process may take",
    errno.EMFILE: "too many files are open; `ulimit -n` allows more",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full, as far as this user may fill it",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether memory was lacking, whoever says it."""
    # torch has an exception of its own for GPUs only.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(part in str(error) for part in _OF_MEMORY)
    )


def sentence(error: BaseException) -> str:
    """Returns what is lacking and what to do, "" where an exception is of another kind."""
    number = errno.ENOMEM if is_out_of_memory(error) else getattr(error, "errno", None)
    return _SENTENCES.get(number, "") if number is not None else ""
