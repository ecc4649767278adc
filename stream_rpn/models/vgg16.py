"""The classic of Ren et al. 2015: VGG16 up to conv5_3, stride 16, nine anchors, softmax."""

from torchvision.models import vgg16

from stream_rpn.anchors import AnchorSpec
from stream_rpn.input_spec import InputSpec
from stream_rpn.rpn import RPN, ProposalSpec, RPNHead

STRIDE = 16
SIZES = (128, 256, 512)
RATIOS = (1.0, 0.5, 2.0)
# The window of cell (0, 0) is centred half a stride into the image (in pixel-edge coordinates), and
# so are its anchors: the code of the paper starts from the box 0, 0, 15, 15 in inclusive pixels.
CENTRE = STRIDE / 2


def build() -> RPN:
    """Returns the RPN of VGG16: 3×3×512, then 18 objectness channels and 36 delta channels.

    300×400 gives 18×25 cells and 4,050 anchors: the input is not padded, and the pools round down.
    """
    conv5_3_and_relu = 30
    return RPN(
        vgg16(weights=None).features[:conv5_3_and_relu],
        RPNHead(512, len(SIZES) * len(RATIOS), softmax=True),
        AnchorSpec((SIZES,), RATIOS, order="scale-major", centre=CENTRE),
        input_spec=InputSpec(min_size=600, max_size=1000, size_divisor=1),
        proposal_spec=ProposalSpec(pre_nms_top_n=6000, post_nms_top_n=300),
    )
