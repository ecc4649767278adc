"""Passes encoded video from standard input on to an address; run as a process of its own.

FFmpeg connects, writes its header and says goodbye while PyAV holds the interpreter's lock, for as
long as the peer likes: in the pipeline's process that would stop everything. Here it stops nothing,
and whoever waits too long for it ends this process.

Started by file, not as a module: all it needs is PyAV.
"""

from __future__ import annotations

import os
import sys

import av
import av.error

# The options that are the muxer's; those of the protocol stand in the address.
_OPTIONS = {"rtsp": {"rtsp_transport": "tcp"}}


def relay(container_format: str) -> None:
    """Copies an FLV's video from standard input until it ends, to the address in the line before.

    There nobody else sees the address and its password, unlike among a process's arguments.
    """
    options = _OPTIONS.get(container_format, {})
    with open(0, "rb", buffering=0) as pipe:
        url = os.fsdecode(pipe.readline().rstrip(b"\n"))
        # The FLV's header tells all there is to know; nothing has to be waited for.
        with av.open(pipe, "r", format="flv", options={"analyzeduration": "1"}) as source:
            stream = source.streams.video[0]
            with av.open(url, "w", format=container_format, options=options) as target:
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)


if __name__ == "__main__":
    try:
        relay(*sys.argv[1:])
    except (av.error.FFmpegError, OSError) as error:
        print(error.strerror or error, file=sys.stderr)
        sys.exit(1)
