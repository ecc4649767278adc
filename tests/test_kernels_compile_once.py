"""A Triton kernel compiles for types and formats, and not again for other sizes in mid-stream."""

import os
from types import SimpleNamespace

import pytest
import torch

from stream_rpn.kernels.proposals import ProposalSpec
from tests.preprocess_oracle import Picture, lay_out
from tests.proposal_cases import candidates, head_outputs

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"
)


class Compilations:
    """Stands in for a kernel: notes by what its launches are compiled, and runs none of them."""

    def __init__(self, kernel):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        self.kernel, self.keys = kernel, set()
        self.bind = create_function_from_signature(
            kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
        )

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            _, specialization, options = self.bind(*args, **kwargs)
            self.keys.add(str((specialization, options)))

        return launch


@pytest.fixture
def compiled(monkeypatch):
    """The kernels by name, as stand-ins."""
    from stream_rpn.kernels import (
        depthwise_triton,
        epilogue_triton,
        nms_triton,
        preprocess_triton,
        propose_triton,
    )

    found = {}
    modules = (depthwise_triton, epilogue_triton, nms_triton, preprocess_triton, propose_triton)
    for module in modules:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            found[name] = Compilations(getattr(module, name))
            monkeypatch.setattr(module, name, found[name])
    return SimpleNamespace(
        add_bias=epilogue_triton.add_bias_triton,
        depthwise=depthwise_triton.depthwise_triton,
        nms=nms_triton.nms_triton,
        preprocess=preprocess_triton.preprocess_triton,
        select=propose_triton.select_candidates_triton,
        counts=lambda: {name: len(kernel.keys) for name, kernel in found.items()},
    )


def test_maps_of_any_shape_share_one_selection(compiled):
    for batch, height, width in ((1, 16, 16), (2, 9, 7), (3, 1, 1), (16, 32, 5), (1, 48, 64)):
        for k in (1, 16, 100, 2000):
            heads = head_outputs([(height, width), (4, 3)], batch=batch)
            compiled.select(heads, ProposalSpec(pre_nms_top_n=k))
    counts = {name: n for name, n in compiled.counts().items() if name.startswith("propose")}
    # The three later digits of a float32 are kernels of their own.
    assert counts == {
        "propose_keys_kernel": 1,
        "propose_digits_kernel": 3,
        "propose_count_kernel": 1,
        "propose_compact_kernel": 1,
        "propose_decode_kernel": 1,
    }


def test_suppression_compiles_for_powers_of_two_only(compiled):
    for sizes in ((1000, 992, 1), (1000, 960, 16), (999, 1, 33), (1024, 700, 300)):
        for batch, top in ((1, 1000), (16, 1000), (3, 999), (2, 512)):
            compiled.nms(candidates(sizes, batch=batch), sizes, ProposalSpec(post_nms_top_n=top))
    counts = {name: n for name, n in compiled.counts().items() if name.startswith("nms")}
    assert counts == {
        "nms_suppress_kernel": 0,
        "nms_overlap_kernel": 1,
        "nms_walk_kernel": 1,
        "nms_merge_kernel": 1,
    }


def test_frames_of_any_shape_share_one_form_a_layout(compiled):
    data, table, matrix = lay_out([Picture(8, 8, (8, 8))])
    mean = torch.zeros(3)
    for layout in (torch.contiguous_format, torch.channels_last):
        for height, width in ((32, 64), (768, 1344), (48, 16), (33, 16), (9, 7), (16, 15)):
            out = torch.empty(2, 3, height, width, dtype=torch.bfloat16, memory_format=layout)
            compiled.preprocess(data, table, matrix, mean, mean, out, antialias=False)
    # Channels last, an odd width keeps its pixels from being written in pairs.
    assert compiled.counts()["preprocess_kernel"] == 3


def test_maps_of_any_size_and_activation_share_one_form_a_power_of_two(compiled):
    for channels in (24, 96, 232, 8, 1280):
        for size in ((1, 1, 1), (8, 13, 26), (16, 3, 5)):
            for activation in ("none", "relu", "relu6", "leaky_relu"):
                batch, height, width = size
                x = torch.empty(batch, height, width, channels, dtype=torch.bfloat16)
                bias = torch.zeros(channels, dtype=torch.bfloat16)
                compiled.add_bias(x.permute(0, 3, 1, 2), bias, activation, 0.1)
    assert compiled.counts()["epilogue_kernel"] == 1


def test_depthwise_convolutions_of_any_shape_share_one_form(compiled):
    for channels in (32, 96, 160):
        for batch, height, width, stride in ((1, 16, 16, 1), (2, 9, 7, 2), (3, 1, 1, 1)):
            x = torch.empty(batch, height, width, channels, dtype=torch.bfloat16)
            weight = torch.zeros(3, 3, channels, dtype=torch.bfloat16)
            for activation in ("none", "relu6", "leaky_relu"):
                compiled.depthwise(
                    x.permute(0, 3, 1, 2), weight, weight[0, 0], activation, 0.1, stride, 1
                )
    assert compiled.counts()["depthwise_kernel"] == 1
