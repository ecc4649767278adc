"""Head outputs and candidates that tests of the proposal stage share."""

import torch
from hypothesis import strategies as st

from stream_rpn import anchors
from stream_rpn.kernels.proposals import Candidates, HeadOutputs, ProposalSpec

# The maps of a 1080p frame after torchvision's resize and padding to 768×1344: 257,796 anchors.
FPN_SIZES = ((192, 336), (96, 168), (48, 84), (24, 42), (12, 21))
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def head_outputs(
    sizes,
    *,
    batch=1,
    num_anchors=3,
    dtype=torch.float32,
    softmax=False,
    channels_last=False,
    steps=None,
    stride=(4, 4),
):
    """Returns head outputs; logits in `steps` per unit have many ties."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    channels = num_anchors * (2 if softmax else 1)
    objectness = [torch.randn(batch, channels, h, w) for h, w in sizes]
    if steps is not None:
        objectness = [(logits * steps).round() / steps for logits in objectness]
    deltas = [torch.randn(batch, 4 * num_anchors, h, w) * 0.5 for h, w in sizes]
    ratios = [0.5 + 0.5 * a for a in range(num_anchors)]
    strides = [(stride[0] * 2**i, stride[1] * 2**i) for i in range(len(sizes))]
    base = [anchors.ratio_major([32.0 * 2**i], ratios) for i in range(len(sizes))]
    height, width = sizes[0][0] * stride[0], sizes[0][1] * stride[1]
    image_sizes = torch.tensor([[height - 3 * i, width - i] for i in range(batch)]).clamp(min=1)
    return HeadOutputs(
        [logits.to(dtype).to(memory_format=layout) for logits in objectness],
        [delta.to(dtype).to(memory_format=layout) for delta in deltas],
        base,
        strides,
        image_sizes.reshape(batch, 2),
    )


def candidates(
    level_sizes, *, batch=1, span=400.0, side=80.0, rejected=0.1, integer=False, steps=None
):
    """Returns random candidates of these levels; `rejected` is a share of the slots."""
    m = sum(level_sizes)
    corner, sides = torch.rand(batch, m, 2) * span, torch.rand(batch, m, 2) * side + 2
    boxes = torch.cat((corner, corner + sides), dim=-1)
    if integer:
        boxes = boxes.round()
    logits = torch.randn(batch, m)
    if steps is not None:
        logits = (logits * steps).round() / steps
    logits = torch.cat(
        [level.sort(dim=1, descending=True).values for level in logits.split(list(level_sizes), 1)],
        dim=1,
    )
    indices = torch.arange(m, dtype=torch.int32).expand(batch, m).clone()
    out = torch.rand(batch, m) < rejected
    boxes[out], logits[out], indices[out] = 0.0, -torch.inf, -1
    return Candidates(boxes, logits, indices)


def from_boxes(boxes):
    """Returns candidates of one image and level, best first, with the given boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    n = boxes.shape[1]
    return Candidates(
        boxes, torch.arange(n, 0.0, -1.0)[None], torch.arange(n, dtype=torch.int32)[None]
    )


HARD_LOGITS = (0.0, -0.0, 1.0, -1.0, torch.nan, torch.inf, -torch.inf, 17.5, 18.0, 3e38, 1e-40)


@st.composite
def problems(draw):
    """Draws head outputs and limits: shapes, dtype, layout, head, k and hard logits."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    args = head_outputs(
        sizes,
        batch=draw(st.integers(1, 3)),
        num_anchors=draw(st.integers(1, 4)),
        dtype=draw(st.sampled_from(list(DTYPES.values()))),
        softmax=draw(st.booleans()),
        channels_last=draw(st.booleans()),
        steps=draw(st.sampled_from([None, 1, 4])),
        stride=draw(st.sampled_from([(4, 4), (7, 5)])),
    )
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    for logits in args[0]:
        # Triton's interpreter flushes subnormal bfloat16 to 0, which no GPU does.
        hard = torch.tensor(HARD_LOGITS[: -1 if logits.dtype == torch.bfloat16 else None])
        hard = hard[torch.randint(len(hard), logits.shape)]
        logits.copy_(torch.where(torch.rand(logits.shape) < share, hard.to(logits.dtype), logits))
    if draw(st.booleans()):
        args[0][0][:1] = torch.nan
    if draw(st.booleans()):
        hard = torch.tensor((torch.nan, torch.inf, -torch.inf, 60.0))
        delta = args[1][-1]
        where = torch.rand(delta.shape) < 0.2
        delta.copy_(torch.where(where, hard[torch.randint(4, delta.shape)].to(delta.dtype), delta))
    spec = ProposalSpec(
        pre_nms_top_n=draw(st.sampled_from([1, 2, 7, 64, 100, 1000])),
        # Logits of 0, of which there are many, are exactly at the second.
        score_thresh=draw(st.sampled_from([0.0, 0.5])),
        min_size=draw(st.sampled_from([0.0, 20.0])),
    )
    return args, spec
