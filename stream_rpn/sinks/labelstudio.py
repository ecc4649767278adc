"""Label Studio: tasks with predictions, to be imported into a project and corrected."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks.record import picture_name
from stream_rpn.sinks.sink import WholeFileSink
from stream_rpn.sources.address import local_file

LABEL_CONFIG = """\
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image"><Label value="object"/></RectangleLabels>
</View>
"""
"""The labelling interface of a project that the tasks are for."""


class LabelStudioSink(WholeFileSink):
    """Writes an array of tasks: `data.image`, and one prediction with a `rectanglelabels` a box.

    The image is named as local files are: `/data/local-files/?d=FOLDER/NAME`, where FOLDER is that
    of the pictures (of a video, its stem) and stands in Label Studio's document root. Sides are in
    percent of the picture's. `model_version` is the model with the start of its weights' SHA-256.
    """

    def _begin(self, header: dict[str, Any], info: StreamInfo) -> None:
        digest = (header.get("weights") or {}).get("sha256") or ""
        self._model = f"{header['model']} {digest[:12]}".strip()
        picture = local_file(info.source)  # where it is a single one
        self._folder = info.stem if picture is None else picture.resolve().parent.name
        self._stem = info.stem
        self._separator = b"[\n"

    def _write(self, proposals: Proposals) -> None:
        picture = picture_name(proposals.frame, proposals.name)
        folder = self._stem if proposals.name is None else self._folder
        place = quote(f"{folder}/{picture}", errors="surrogateescape")
        task = {
            "data": {"image": f"/data/local-files/?d={place}"},
            "predictions": [
                {
                    "model_version": self._model,
                    "score": float(proposals.scores.mean()) if len(proposals) else 0.0,
                    "result": [_region(proposals, rank) for rank in range(len(proposals))],
                }
            ],
            "meta": {"frame": proposals.frame, "pts_seconds": proposals.pts_seconds},
        }
        self._file.write(self._separator + json.dumps(task).encode())
        self._separator = b",\n"

    def _close(self) -> None:
        self._file.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")
        super()._close()


def _region(proposals: Proposals, rank: int) -> dict[str, Any]:
    width, height = proposals.width, proposals.height
    x1, y1, x2, y2 = proposals.boxes[rank].astype(float).clip(0, [width, height] * 2)
    return {
        "id": f"{proposals.frame}-{rank}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": float(f"{proposals.scores[rank]:.6g}"),
        "value": {
            "x": round(100 * x1 / width, 4),
            "y": round(100 * y1 / height, 4),
            "width": round(100 * (x2 - x1) / width, 4),
            "height": round(100 * (y2 - y1) / height, 4),
            "rotation": 0,
            "rectanglelabels": ["object"],
        },
    }
