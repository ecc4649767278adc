"""Made-up results for the tools of others: three pictures, one of them without boxes."""

import json

import numpy as np

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks import make_header, open_sink

INFO = StreamInfo("pictures", "pictures", 96, 64, num_frames=3)
HEADER = json.loads(json.dumps(make_header(INFO, model="tiny", parameters={"top": 300})))
NAMES = ("a.jpg", "b.png", "c.jpg")


def record(frame: int, boxes: list[list[float]], **more: object) -> Proposals:
    count = len(boxes)
    fields: dict = {
        "pts": None,
        "pts_seconds": None,
        "width": 96,
        "height": 64,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.linspace(0.9, 0.3, count, dtype=np.float32),
        "levels": np.zeros(count, np.int32),
        "anchors": np.arange(count, dtype=np.int32),
        "input_boxes": np.zeros((count, 4), np.float32),
        "name": NAMES[frame],
        "source": INFO.source,
    }
    return Proposals(frame=frame, **{**fields, **more})


RECORDS = [
    record(0, [[20, 16, 60, 48], [1.5, 2.25, 30.5, 60]]),
    record(1, []),
    record(2, [[0, 0, 96, 64]]),
]


def write(name, records, *, ended=True, info=INFO, **options):
    """Writes results; returns the sink where it is not to be ended, else None."""
    sink = open_sink(name, **options)
    sink.begin(HEADER, info)
    for one in records:
        sink.write(one)
    if not ended:
        return sink
    sink.end({"frames": len(records), "complete": True, "drops": {}})
    sink.close()
    return None
