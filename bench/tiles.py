"""What `--tile` and `--region-crop` find and cost: python -m bench.tiles [--data DIR].

`python -m bench.readme` then writes the table in docs/regions.md.

Scenes of 3840×2160 pixels are made of annotated COCO pictures of their own size, 24 side by side:
objects are as large, in pixels, as a photograph shows them, and small in the whole. (Enlarged
pictures would have no more to show in tiles than in the whole.) They are encoded as a clip, and
every way looks at that clip. Larger inputs of the whole (`--size`) stand beside the tiles, as they
are the other way to see small things.

Of a region, a share of 3/8 of each side in the middle, only objects whose centres lie in it count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from bench import report
from bench.pipeline import Side, ours, ratios, row_of
from stream_rpn import api
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.evaluation.recall import Recall, by_image
from stream_rpn.pipeline import Pipeline
from stream_rpn.queues import prefetch
from stream_rpn.sources.select import Selection
from stream_rpn.views import ViewSpec

WIDTH, HEIGHT, COLUMNS, ROWS = 3840, 2160, 6, 4
LIMITS = (300, 1000)
NUMBERS = ("AR@300", "AR@1000", "R50@300", "R50@1000", "R50@1000/small")
# Of the cores, that others may take without a word about it.
QUIET = 0.05
REGION = (5 / 16, 5 / 16, 11 / 16, 11 / 16)

# The name of each way, the size of the input (None for the model's own), and what is looked at.
_CORNERS = [(REGION[x], REGION[y]) for x, y in ((0, 1), (2, 1), (2, 3), (0, 3))]
WAYS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "whole": (None, {}),
    "--size 832": (832, {}),
    "--size 1248": (1248, {}),
    "--tile 2x2": (None, {"tile": "2x2"}),
    "--tile auto": (None, {"tile": "auto"}),
    "--tile 4x4": (None, {"tile": "4x4"}),
    "--region": (None, {"region": _CORNERS}),
    "--region --region-crop": (None, {"region": _CORNERS, "crop": True}),
    "--region --region-crop --tile 2x2": (
        None,
        {"region": _CORNERS, "crop": True, "tile": "2x2"},
    ),
}


def scenes(data: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pictures [2160, 3840, 3] uint8 RGB and the boxes [G, 4] of their objects."""
    coco = data / "coco"
    dataset = CocoDataset(coco / "annotations_val.json", [coco / "val.tar"], cache_bytes=0)
    width, height = WIDTH // COLUMNS, HEIGHT // ROWS
    for first in range(0, min(count * COLUMNS * ROWS, len(dataset)), COLUMNS * ROWS):
        scene = np.full((HEIGHT, WIDTH, 3), 114, np.uint8)
        boxes = [np.zeros((0, 4))]
        for index in range(first, min(first + COLUMNS * ROWS, len(dataset))):
            sample = dataset[index]
            x = (index - first) % COLUMNS * width
            y = (index - first) // COLUMNS * height
            scale = min(1.0, width / sample.image.shape[1], height / sample.image.shape[0])
            size = [round(side * scale) for side in sample.image.shape[1::-1]]
            picture = Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS)
            scene[y : y + size[1], x : x + size[0]] = np.asarray(picture)
            boxes.append(sample.boxes * scale + np.array([x, y, x, y]))
        yield scene, np.concatenate(boxes)


def clip_of(data: Path, count: int, path: Path) -> dict[int, np.ndarray]:
    """Writes the scenes as a clip and returns the boxes of their objects by frame."""
    truth = {}
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "12", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, (scene, boxes) in enumerate(scenes(data, count)):
            truth[index] = boxes
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene, format="rgb24")))
        container.mux(stream.encode(None))
    return truth


def inside(boxes: np.ndarray) -> np.ndarray:
    """Returns the boxes whose centres lie in the region."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 / WIDTH, (boxes[:, 1] + boxes[:, 3]) / 2 / HEIGHT
    return boxes[(x >= REGION[0]) & (x < REGION[2]) & (y >= REGION[1]) & (y < REGION[3])]


def rows(data: Path, count: int, turns: int) -> Iterator[dict[str, Any]]:
    """Yields what each way finds and how long it takes, in turns."""
    with tempfile.TemporaryDirectory() as name:
        clip, out = Path(name, "clip.mp4"), str(Path(name, "out.jsonl"))
        truth = clip_of(data, count, clip)
        part = {frame: inside(boxes) for frame, boxes in truth.items()}
        sides, found = [], {}
        for way, (size, asked) in WAYS.items():
            selection = Selection(view=ViewSpec.parse(**asked))
            pipeline = api.open_pipeline(
                device="cpu", top=max(LIMITS), size=size, selections=[selection]
            )
            found[way] = look(pipeline, clip, selection, part if "region" in asked else truth)
            sides.append(Side(way, partial(ours, pipeline, str(clip), out, selection=selection)))
        for _ in range(turns):
            for side in sides:
                side.turns.append(side.run(count))
        for side in sides:
            yield {"way": side.name} | found[side.name] | row_of(side) | ratios(side, sides[0])


def look(
    pipeline: Pipeline, clip: Path, selection: Selection, truth: dict[int, np.ndarray]
) -> dict[str, Any]:
    """Returns the recall of a way, and how often it calls the network for a frame."""
    with pipeline.open(str(clip), selection) as stream:
        recall = Recall(by_image(stream), truth, LIMITS)
    spec = pipeline.model.input_spec
    view = selection.view
    calls = 1 if view is None else len(view.views(WIDTH, HEIGHT, spec))
    return {"calls": calls, "input": spec.min_size} | recall.summary()


def table(found: dict[str, Any]) -> str:
    """Returns a report as what docs/regions.md says of it."""
    machine, measured = found["machine"], found["rows"]
    busy = max(row["others_utilisation"] or 0.0 for row in measured)
    lines = [
        f"What is found in {found['scenes']} scenes of {found['width']}×{found['height']} made of "
        f"COCO pictures in their own size, {measured[0]['objects']:,} objects, of them "
        f"{measured[0]['objects/small']:,} small (under 32×32 pixels); AR is the mean recall over "
        "IoU 0.5–0.95, R50 that at IoU 0.5, @ the number of proposals; the default model, "
        f"commit `{machine['commit']}` (`python -m bench.tiles`):",
        "",
        "| | calls | AR@300 | AR@1000 | R50@1000 | small ones | CPU ms a frame | frames/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in measured:
        if row["way"] == "--region":
            lines += [
                "",
                f"Of a region in the middle, 3/8 of each side, {row['objects']:,} objects:",
                "",
                *lines[2:4],
            ]
        numbers = (row["AR@300"], row["AR@1000"], row["R50@1000"], row["R50@1000/small"])
        cells = [f"`{row['way']}`", str(row["calls"]), *(f"{number:.3f}" for number in numbers)]
        spread = f"{row['fps_min']:.2g}–{row['fps_max']:.2g}"
        cells += [f"{row['cpu_ms_a_frame']:.0f}", f"{row['fps_median']:.2g} ({spread})"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"CPU time is of all cores, decoding in; {machine['cores']} cores of {machine['cpu']}.",
    ]
    if busy > QUIET:
        lines += [
            "",
            f"**The machine was not quiet**: other processes took up to {busy:.0%} of its cores. "
            "Frames/s are worth little then, CPU time is rough; what is found is the same.",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures, prints a table and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scenes", type=int, default=16, help="frames of the clip (16)")
    parser.add_argument("--turns", type=int, default=3, help="times that each way is timed (3)")
    parser.add_argument("--json", type=Path, default=Path("bench/results/tiles.json"))
    arguments = parser.parse_args()
    facts = report.machine()
    print(report.describe_machine(facts))
    # In a thread, for the reason given in `stream_rpn/commands/bench.py`.
    measured = rows(arguments.data, arguments.scenes, arguments.turns)
    with prefetch(measured, 1, name="bench") as each:
        found = list(each)
    columns = ["way", "calls", "input", "objects", *NUMBERS, "fps_median", "fps_min", "fps_max",
               "others_utilisation"]  # fmt: skip
    report.print_table(found, columns)
    report.write_json(arguments.json, "tiles", found, machine=facts, width=WIDTH, height=HEIGHT,
                      scenes=arguments.scenes)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
