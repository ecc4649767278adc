"""Pipes as files: what ends them, and what must not happen on the way."""

import os
import threading
import time

import pytest

from stream_rpn.sources.pipe import Pipe


@pytest.fixture
def ends():
    """A pipe's end that reads, as ours, and the descriptor of the end that writes."""
    reading, writing = os.pipe()
    stop = threading.Event()
    pipe = Pipe(reading, stop.is_set)
    pipe.stop = stop
    yield pipe, writing
    pipe.close()
    os.close(writing)


def reads_in_a_thread(pipe):
    found = []

    def read():
        try:
            found.append(pipe.read(10))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.05)
    return thread, found


def test_what_was_looked_at_is_read_again(ends):
    pipe, writing = ends
    os.write(writing, b"0123456789")
    assert pipe.look(4) == b"0123"
    assert pipe.read(4) + pipe.read(6) == b"0123456789"


def test_one_that_waits_ends_where_nobody_wants_more(ends):
    pipe, _ = ends
    thread, found = reads_in_a_thread(pipe)
    pipe.stop.set()
    thread.join(2)
    assert found == [b""]
    assert pipe.cut


def test_who_waits_sees_the_end_where_another_thread_closes_it(ends):
    pipe, _ = ends
    thread, found = reads_in_a_thread(pipe)
    pipe.close()
    thread.join(2)
    assert found == [b""]
    assert pipe.closed
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(pipe._number)
