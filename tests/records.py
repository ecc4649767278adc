"""Made-up records, and outputs in the middle of a run, without what takes long to import."""

import av
import numpy as np

from stream_rpn.frame import Color, Proposals, StreamInfo
from stream_rpn.sinks import make_header, open_sink

COLOR = Color("bt709", full_range=False, tagged=True)
INFO = StreamInfo("clips/a.mp4", "a", 96, 64, fps=25.0, color=COLOR)
BOX = [20.0, 16.0, 60.0, 48.0]


def gray_frame(width=96, height=64, luma=120):
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = luma
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def make_proposals(frame=0, boxes=(BOX,), scores=None, **more):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    if scores is None:
        scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
    fields = {
        "pts": frame * 512,
        "pts_seconds": frame / 25,
        "width": 96,
        "height": 64,
        "levels": np.arange(count, dtype=np.int32) % 5,
        "anchors": np.arange(count, dtype=np.int32),
        "input_boxes": np.zeros((count, 4), np.float32),
        "image": gray_frame(),
        "color": COLOR,
    }
    return Proposals(
        frame=frame, boxes=boxes, scores=np.asarray(scores, np.float32), **{**fields, **more}
    )


def begun(name, count=3, first=0, info=INFO, **options):
    """Returns a sink in the middle of a run."""
    sink = open_sink(str(name), **options)
    sink.begin(make_header(info, model="tiny"), info)
    for index in range(count):
        sink.write(make_proposals(first + index))
    return sink
