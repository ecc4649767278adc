"""The classic example in numbers: `python -m bench.classic` writes docs/classic.md and its picture.

A picture of 300×400 pixels and VGG16 at stride 16, as in every explanation of the region proposal
network. Each number comes from the code; only shapes matter, so the weights are zeros.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stream_rpn import anchors as anchor_ops
from stream_rpn.explanation import receptive
from stream_rpn.models import find
from stream_rpn.rpn import RPN
from stream_rpn.training.targets import BACKGROUND, IGNORED, dense_targets, match_classic

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEIGHT, WIDTH = 300, 400
SIZES, RATIOS = (64.0, 128.0, 256.0), (1.0, 0.5, 2.0)
# Something to label: x1, y1, x2, y2.
OBJECT = (120.0, 90.0, 250.0, 215.0)
COLOURS = ("#3d8fd6", "#2a9d8f", "#d98e1f")


def network() -> RPN:
    """Returns VGG16's proposal network with the anchors of the example, its weights zero."""
    # Made without memory first: a random classifier that nobody needs would take seconds.
    with torch.device("meta"):
        rpn = find("vgg16").build()
    spec = rpn.anchor_spec
    assert spec is not None
    for layers in (rpn.backbone, rpn.head):
        layers.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in rpn.parameters():
            parameter.zero_()
    rpn.set_anchors(spec.override(SIZES, RATIOS))
    return rpn.eval()


def rendered() -> dict[str, str]:
    """Returns the files by name."""
    rpn = network()
    images = torch.zeros(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        maps = list(rpn.features(images).values())
        (objectness,), (deltas,) = rpn.head(maps)
    [(stride, _)] = rpn.strides(images, maps)
    [base] = rpn.base_anchors
    channels, rows, columns = maps[0].shape[1:]
    anchors = anchor_ops.grid(base, (rows, columns), (stride, stride))
    inside = int(anchor_ops.inside(anchors, (HEIGHT, WIDTH)).sum())
    match = match_classic(anchors, torch.tensor([OBJECT]))
    labels, offsets = dense_targets(match, anchors, torch.tensor([OBJECT]), (rows, columns))
    positives, background, ignored = (
        int(chosen.sum()) for chosen in (match >= 0, match == BACKGROUND, match == IGNORED)
    )
    box_text = "{:g}, {:g}, {:g}, {:g}".format(*OBJECT)
    row, column = rows // 2, columns // 2
    fields = receptive.fields(rpn, images)
    # In the middle neither is cut off by the border.
    box = fields.box(0, row, column)
    window, across = box[2] - box[0], fields.maps[0][1]
    field = across.high[column] - across.low[column]
    per_cell = len(base)
    sides = (base[:, 2:] - base[:, :2]).tolist()
    table = "\n".join(
        f"| {a + 1} | {w:.1f} × {h:.1f} | {h / w:g} | {w * h:,.0f} | {2 * a}, {2 * a + 1} | "
        f"{4 * a} … {4 * a + 3} |"
        for a, (w, h) in enumerate(sides)
    )
    text = f"""# The classic example

<!-- Written by `python -m bench.classic`; a test compares the numbers with the code. -->

A picture of {HEIGHT}×{WIDTH} pixels (height × width) and the network of Ren et al. 2015: VGG16 up
to conv5_3, stride {stride}. On a picture of yours:

    stream-rpn explain picture.jpg --model vgg16 --size {HEIGHT} \\
        --anchor-sizes {",".join(f"{size:g}" for size in SIZES)} -o report.html

![Cells, nine anchors of one cell, and what its window depends on](classic.svg)

| | |
|---|---|
| input | {HEIGHT}×{WIDTH}×3 |
| feature map | {rows}×{columns}×{channels} |
| positions of the sliding window | {rows}×{columns} = {rows * columns:,} |
| anchors at each | {len(SIZES)} sizes × {len(RATIOS)} ratios = {per_cell} |
| anchors in all | {rows * columns:,} × {per_cell} = {len(anchors):,} |
| of these wholly inside the picture | {inside:,} |
| a cell of the map depends on | {field}×{field} pixels |
| the 3×3 window at a cell depends on | {window}×{window} pixels |
| objectness, H×W×{2 * per_cell} | {_sides(objectness)} |
| deltas, H×W×{4 * per_cell} | {_sides(deltas)} |
| labels for training | {"×".join(map(str, labels.shape))} |
| offsets for training | {"×".join(map(str, offsets.shape))} |

**The window is not the anchor.** The head reads 3×3 cells of the map, and these depend on
{window}×{window} pixels: fewer than the largest anchors have. Those are scored from their middle,
which mostly shows what they hold.

**The order of the channels.** Anchor by anchor: “background 1, object 1, background 2, …” for
objectness, “dx, dy, dw, dh” of each anchor for the deltas. A 1×1 convolution gives each of them:
{channels} weights and a bias, the same at all {rows * columns:,} positions.

| anchor | w × h | h ÷ w | area | objectness channels | delta channels |
|---|---|---|---|---|---|
{table}

**Labels.** With an object at ({box_text}), {positives} of the {len(anchors):,} anchors
are positive (IoU of at least 0.7, or the best there is), {background:,} are background (below
0.3), and {ignored:,} are ignored. Offsets are zero but for the positive ones.
"""
    cell = base.numpy() + np.array([column, row] * 2) * stride
    return {"classic.md": text, "classic.svg": _drawing(stride, rows, columns, cell, box)}


def _drawing(
    stride: int, rows: int, columns: int, anchors: np.ndarray, window: tuple[int, int, int, int]
) -> str:
    """Returns the picture's cells, the anchors [A, 4] of one of them, and its window, as SVG."""

    def rectangle(box: object, style: str) -> str:
        x1, y1, x2, y2 = (float(v) for v in np.asarray(box))
        size = f'width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
        return f'<rect x="{x1:.1f}" y="{y1:.1f}" {size} {style}/>'

    lines = "".join(
        [f"M{x * stride} 0V{rows * stride}" for x in range(columns + 1)]
        + [f"M0 {y * stride}H{columns * stride}" for y in range(rows + 1)]
    )
    x, y = (anchors[0, :2] + anchors[0, 2:]) / 2
    half = stride / 2
    parts = [
        rectangle((0, 0, WIDTH, HEIGHT), 'fill="#f2f3f3" stroke="#5d6770"'),
        f'<path d="{lines}" fill="none" stroke="#c3c9ce" stroke-width=".5"/>',
        rectangle(window, 'fill="#ff9a4d" fill-opacity=".15" stroke="#e07b2a" '
                  'stroke-dasharray="5 3"'),
        *(
            rectangle(anchor, f'fill="none" stroke="{COLOURS[a // 3]}" stroke-width="1.5"')
            for a, anchor in enumerate(anchors)
        ),
        rectangle((x - half, y - half, x + half, y + half), 'fill="#1d2125"'),
    ]  # fmt: skip
    view = f"-30 -30 {WIDTH + 60} {HEIGHT + 60}"
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">\n{body}\n</svg>\n'


def _sides(level: Tensor) -> str:
    """Returns H×W×C of a map [1, C, H, W]."""
    _, channels, rows, columns = level.shape
    return f"{rows}×{columns}×{channels}"


def main() -> None:
    for name, text in rendered().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
