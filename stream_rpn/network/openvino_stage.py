"""The ends of a network as operators of OpenVINO: pixels before it, the proposal stage behind it.

With both in one graph, bytes go in and boxes come out, and nothing in between holds Python's lock.
The specification is the PyTorch form (`preprocess_reference.color_planes`, `generate_proposals`),
operator by operator; what differs is told at `proposals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from stream_rpn.embedding import Embedding
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.proposals import ProposalSpec

# As in kernels.boxes: a side grows at most by 1000/16 over its anchor's.
MAX_LOG_SCALE = float(np.log(1000.0 / 16.0))

# More boxes than any graph has.
MOST = 2**31 - 1

Node = Any  # openvino has no types


@dataclass(frozen=True)
class Level:
    """What decoding needs to know of a level.

    Attributes:
        stride: (y, x) input pixels per cell; None where the size of the map says it.
        base_anchors: [A, 4] float32.
        softmax: two logits per anchor, background|object interleaved.
    """

    stride: tuple[int, int] | None
    base_anchors: np.ndarray
    softmax: bool = False


def whole_graph(
    heads: ov.Model,
    shape: tuple[int, int],
    levels: Sequence[Level],
    input_spec: InputSpec,
    proposal_spec: ProposalSpec,
    embedding: Embedding | None = None,
) -> ov.Model:
    """Returns the graph from pixels to proposals of one image.

    Args:
        heads: from images [1, 3, H, W] float32 to objectness of each level, then its deltas, then
            its map; it stays as it is.
        shape: H and W, −1 for any.
        levels: of each.
        input_spec: with `antialias`, images are planes of bytes to be converted first; otherwise
            they are what `heads` takes.
        proposal_spec: the limits.
        embedding: how boxes become vectors, None where they do not.

    Returns:
        A graph of "images" [1, 3, H, W] and "image_size" [2] float32 (height, width); where images
        are bytes, of "matrix" [3, 4] float32 as well. Its outputs are "boxes" [n, 4] float32 in
        pixels of the input, "scores" [n] float32, "levels" [n] and "anchors" [n] int32, best first;
        and "strides" [L, 2] int32, (y, x) input pixels per cell. With `embedding` there are
        "embeddings" [n, D] float32 as well.
    """
    heads = heads.clone()
    heads.reshape([1, 3, *shape])
    (images,) = heads.get_parameters()
    size = op.parameter([2], np.float32)
    inputs = {"images": images, "image_size": size}
    if input_spec.antialias:
        taken = images.output(0).get_target_inputs()
        inputs["images"] = op.parameter(images.partial_shape, np.uint8)
        inputs["matrix"] = op.parameter([3, 4], np.float32)
        converted = colored(inputs["images"], inputs["matrix"], size, input_spec)
        for target in taken:
            target.replace_source_output(converted.output(0))
    raw = [result.input_value(0) for result in heads.get_results()]
    objectness, deltas, maps = (raw[i * len(levels) : (i + 1) * len(levels)] for i in range(3))
    outputs = proposals(objectness, deltas, levels, inputs["images"], size, proposal_spec)
    if embedding is not None:
        outputs["embeddings"] = pooled(maps, outputs["boxes"], embedding)
    for name, node in {**inputs, **outputs}.items():
        node.output(0).set_names({name})
    return ov.Model(
        [op.result(node) for node in outputs.values()], [*inputs.values()], "stream-rpn"
    )


def colored(planes: Node, matrix: Node, size: Node, spec: InputSpec) -> Node:
    """Returns images [1, 3, H, W] float32, normalised and padded, of planes of bytes."""
    mean, std = (np.array(v, np.float32)[:, None] for v in (spec.mean, spec.std))
    scaled = op.divide(op.slice(matrix, [0], [3], [1], [1]), std)
    offset = op.divide(op.subtract(op.slice(matrix, [3], [4], [1], [1]), mean), std)
    # Parted as bytes, which OpenVINO does without a copy.
    y, u, v = (op.convert(plane, np.float32) for plane in op.split(planes, 1, 3).outputs())
    shape = np.array([1, 3, 1, 1])

    def column(i: int) -> Node:
        return op.reshape(op.slice(scaled, [i], [i + 1], [1], [1]), shape, False)

    rgb = op.add(
        op.add(op.multiply(y, column(0)), op.multiply(u, column(1))),
        op.add(op.multiply(v, column(2)), op.reshape(offset, shape, False)),
    )
    low, high = (-mean / std).reshape(shape), ((1 - mean) / std).reshape(shape)
    rgb = op.minimum(op.maximum(rgb, low), high)
    height, width = (op.squeeze(part, 0) for part in op.split(size, 0, 2).outputs())
    rows, columns = _extent(planes, 2), _extent(planes, 3)
    inside_y = op.reshape(op.less(_range(rows), height), np.array([1, 1, -1, 1]), False)
    inside_x = op.reshape(op.less(_range(columns), width), np.array([1, 1, 1, -1]), False)
    inside = op.logical_and(inside_y, inside_x)
    return op.select(inside, rgb, np.float32(0))


def proposals(
    objectness: Sequence[Node],
    deltas: Sequence[Node],
    levels: Sequence[Level],
    images: Node,
    size: Node,
    spec: ProposalSpec,
) -> dict[str, Node]:
    """Returns the outputs of the stage by name.

    The steps are those of `generate_proposals`. Sums and products are rounded as there, but `exp`
    is OpenVINO's; equal logits may come in another order, and what lies within a rounding of a
    limit (`nms_thresh`, `min_size`, `score_thresh`, the last of `pre_nms_top_n`) may fall to
    the other side.
    """
    boxes, logits, of_level, anchors, strides = [], [], [], [], []
    for index, level in enumerate(levels):
        flat = _logits(objectness[index], softmax=level.softmax)
        moved = op.reshape(
            op.transpose(deltas[index], np.array([0, 2, 3, 1])), np.array([-1, 4]), False
        )
        strides.append(_stride(objectness[index], images, level))
        grid = _anchors(objectness[index], strides[-1], level.base_anchors)
        count = flat.output(0).partial_shape[0]
        if count.is_dynamic or count.get_length() > spec.pre_nms_top_n:
            number = _extent(flat, 0, np.int32)
            # Equal logits in any order: a stable selection takes a hundred times as long.
            best = op.topk(
                flat,
                op.minimum(number, np.int32(min(spec.pre_nms_top_n, MOST))),
                0,
                "max",
                "value",
                index_element_type="i32",
            )
            flat, chosen = best.output(0), best.output(1)
            moved, grid = (op.gather(part, chosen, np.int32(0)) for part in (moved, grid))
        else:
            chosen = op.convert(_range(_extent(flat, 0)), np.int32)
        boxes.append(_decode(moved, grid))
        logits.append(flat)
        anchors.append(chosen)
        of_level.append(op.add(op.multiply(chosen, np.int32(0)), np.int32(index)))
    box = op.concat(boxes, 0)
    logit = op.concat(logits, 0)
    level_index, anchor = op.concat(of_level, 0), op.concat(anchors, 0)
    finite = op.less(op.reduce_max(op.abs(box), np.int32(1)), np.float32(np.inf))
    height, width = op.split(size, 0, 2).outputs()
    limits = op.concat([width, height, width, height], 0)
    box = op.minimum(op.maximum(box, np.float32(0)), limits)
    near, far = op.split(box, 1, 2).outputs()
    shortest = op.reduce_min(op.subtract(far, near), np.int32(1))
    keep = op.logical_and(finite, op.greater_equal(shortest, np.float32(spec.min_size)))
    score = op.sigmoid(op.minimum(op.maximum(logit, np.float32(-87)), np.float32(87)))
    if spec.score_thresh > 0:
        keep = op.logical_and(keep, op.greater_equal(score, np.float32(spec.score_thresh)))
    # Suppression is by class, and levels do not meet: they are its classes.
    mine = op.equal(
        op.unsqueeze(level_index, np.int32(0)), np.arange(len(levels), dtype=np.int32)[:, None]
    )
    lowest = np.float32(np.finfo(np.float32).min)
    ranked = op.select(op.logical_and(mine, op.unsqueeze(keep, 0)), op.unsqueeze(logit, 0), lowest)
    top = min(spec.post_nms_top_n, MOST)
    kept = op.non_max_suppression(
        op.unsqueeze(box, np.int32(0)),
        op.unsqueeze(ranked, np.int32(0)),
        op.constant(np.int64(top)),
        op.constant(np.float32(spec.nms_thresh)),
        op.constant(lowest),
        op.constant(np.float32(0)),
        box_encoding="corner",
        sort_result_descending=True,
        output_type="i32",
    )
    rows = op.slice(kept.output(0), [0], [top], [1], [0])
    chosen = op.squeeze(op.slice(rows, [2], [3], [1], [1]), np.int32(1))
    first = np.int32(0)
    return {
        "boxes": op.gather(box, chosen, first),
        "scores": op.gather(score, chosen, first),
        "levels": op.gather(level_index, chosen, first),
        "anchors": op.gather(anchor, chosen, first),
        "strides": op.concat([op.unsqueeze(s, np.int32(0)) for s in strides], 0),
    }


def pooled(maps: Sequence[Node], boxes: Node, embedding: Embedding) -> Node:
    """Returns the vectors [n, D] of boxes [n, 4], as `Embedding.pool`."""
    # All boxes are of the one image.
    images = op.broadcast(np.int32(0), op.slice(op.shape_of(boxes), [0], [1], [1], [0]))
    parts = []
    for level, stride, length in zip(
        embedding.levels, embedding.strides, embedding.lengths, strict=True
    ):
        # Divided here, as the operator's own scale would count half a pixel before it is applied.
        cells = op.divide(boxes, np.array([stride[::-1] * 2], np.float32))
        bins = op.roi_align(
            maps[level],
            cells,
            images,
            *embedding.grid,
            embedding.samples,
            1.0,
            "avg",
            aligned_mode="half_pixel_for_nn",
        )
        vectors = op.reshape(bins, np.array([-1, length]), False)
        parts.append(op.normalize_l2(vectors, np.array([1]), 1e-12, "max"))
    return op.divide(op.concat(parts, 1), np.float32(len(parts) ** 0.5))


def _logits(objectness: Node, *, softmax: bool) -> Node:
    """Returns logits [N] in anchor-index order, NaN as the lowest."""
    node = op.transpose(objectness, np.array([0, 2, 3, 1]))
    if softmax:
        pairs = op.reshape(node, np.array([-1, 2]), False)
        background, object_ = op.split(pairs, 1, 2).outputs()
        node = op.subtract(object_, background)
    node = op.reshape(node, np.array([-1]), False)
    return op.select(op.equal(node, node), node, np.float32(-np.inf))


def _stride(objectness: Node, images: Node, level: Level) -> Node:
    """Returns the input pixels per cell of a level, [2] int32 (y, x)."""
    if level.stride is not None:
        return op.constant(np.array(level.stride, np.int32))

    def sides(node: Node) -> Node:
        return op.convert(op.slice(op.shape_of(node), [2], [4], [1], [0]), np.int32)

    return op.divide(sides(images), sides(objectness))


def _anchors(objectness: Node, stride: Node, base_anchors: np.ndarray) -> Node:
    """Returns the anchors [N, 4] of a level."""
    y_step, x_step = (
        op.squeeze(part, np.int32(0))
        for part in op.split(op.convert(stride, np.float32), 0, 2).outputs()
    )
    y = op.multiply(_range(_extent(objectness, 2)), y_step)
    x = op.multiply(_range(_extent(objectness, 3)), x_step)
    y = op.reshape(y, np.array([-1, 1, 1, 1]), False)
    x = op.reshape(x, np.array([1, -1, 1, 1]), False)
    # Both of both extents.
    y, x = op.add(y, op.multiply(x, np.float32(0))), op.add(x, op.multiply(y, np.float32(0)))
    shift = op.concat([x, y, x, y], 3)
    base = base_anchors.astype(np.float32)[None, None]
    return op.reshape(op.add(shift, base), np.array([-1, 4]), False)


def _decode(deltas: Node, anchors: Node) -> Node:
    """Returns boxes [N, 4] of deltas [N, 4], as `kernels.boxes.decode`."""
    near, far = op.split(anchors, 1, 2).outputs()
    sides = op.subtract(far, near)
    move, scale = op.split(deltas, 1, 2).outputs()
    centres = op.add(op.multiply(move, sides), op.add(near, op.multiply(sides, np.float32(0.5))))
    grown = op.exp(op.minimum(scale, np.float32(MAX_LOG_SCALE)))
    half = op.multiply(op.multiply(grown, sides), np.float32(0.5))
    return op.concat([op.subtract(centres, half), op.add(centres, half)], 1)


def _extent(node: Node, axis: int, dtype: type = np.float32) -> Node:
    """Returns the length of an axis as a scalar."""
    return op.convert(op.gather(op.shape_of(node), np.int32(axis), np.int32(0)), dtype)


def _range(count: Node) -> Node:
    """Returns 0, 1, … as float32."""
    return op.range(np.float32(0), count, np.float32(1), "f32")
