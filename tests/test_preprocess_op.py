"""The op that turns planes into the network's input: nothing here needs PyAV."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from stream_rpn import preprocess
from stream_rpn.kernels.preprocess import PlaneLayout, _preprocess_op, preprocess_batch
from tests.preprocess_oracle import MEAN, STD, Picture, lay_out, oracle, pictures

PICTURES = [
    Picture(37, 53, (32, 45)),
    Picture(90, 61, (30, 45), 270, 2, True),
    Picture(11, 8, (44, 60), 0, 1, True, 5),
    Picture(64, 48, (48, 64), 90, 2),
    Picture(5, 7, (9, 3), 180),
    Picture(59, 41, (30, 21)),
    Picture(60, 41, (33, 21), interleaved=True),
    Picture(59, 3, (2, 30), 90),
]


@pytest.mark.numeric
class TestOp:
    @pytest.mark.parametrize("antialias", [False, True], ids=["bilinear", "antialias"])
    @pytest.mark.parametrize("picture", PICTURES, ids=str)
    def test_reference_equals_the_oracle(self, picture, antialias):
        data, table, matrix = lay_out([picture])
        out = torch.full((1, 3, 50, 70), torch.nan)
        preprocess_batch(data, table, matrix, MEAN, STD, out, antialias=antialias)
        expected, tolerance = oracle(data, table, matrix, (50, 70), antialias)
        assert ((out.double() - expected).abs() <= tolerance).all()

    @settings(max_examples=60, deadline=None)
    @given(pictures(), st.booleans())
    def test_any_geometry(self, picture, antialias):
        data, table, matrix = lay_out([picture])
        out = torch.full((1, 3, *picture.size), torch.nan)
        preprocess_batch(data, table, matrix, MEAN, STD, out, antialias=antialias)
        expected, tolerance = oracle(data, table, matrix, picture.size, antialias)
        assert ((out.double() - expected).abs() <= tolerance).all()

    def test_in_gamut_conversion_and_resizing_commute(self):
        # Grey: chroma is constant and luma within its range, so that nothing is clamped.
        luma = torch.randint(16, 236, (40, 66), dtype=torch.uint8)
        data = torch.cat((luma.flatten(), torch.full((2 * 20 * 33,), 128, dtype=torch.uint8)))
        source = PlaneLayout(0, 2640, 3300, 66, 33, 1, 1, 40, 66, 0, 48, 79)
        matrix = preprocess.color_matrix("bt709", False)[None]
        out = torch.empty(1, 3, 64, 96)
        preprocess_batch(data, torch.tensor([list(source)]), matrix, MEAN, STD, out)
        rgb = ((luma.float() - 16) / 219).expand(3, -1, -1)
        resize = GeneralizedRCNNTransform(48, 80, MEAN.tolist(), STD.tolist(), size_divisible=32)
        expected = resize.eval()([rgb])[0].tensors
        assert torch.allclose(out, expected, atol=2e-5)

    def test_registration(self):
        data, table, matrix = lay_out(PICTURES)
        out = torch.empty(len(PICTURES), 3, 50, 70)
        torch.library.opcheck(_preprocess_op, (data, table, matrix, MEAN, STD, out, False))

    def test_compiles_whole(self):
        data, table, matrix = lay_out(PICTURES)
        out = torch.empty(len(PICTURES), 3, 50, 70)
        expected = preprocess_batch(data, table, matrix, MEAN, STD, out.clone())

        @torch.compile(fullgraph=True, backend="aot_eager")
        def doubled(out):
            return preprocess_batch(data, table, matrix, MEAN, STD, out) * 2

        assert torch.equal(doubled(out), expected * 2)

    def test_a_fourth_channel_is_zero(self):
        data, table, matrix = lay_out(PICTURES)
        expected = preprocess_batch(
            data, table, matrix, MEAN, STD, torch.empty(len(PICTURES), 3, 50, 70)
        )
        out = torch.full((len(PICTURES), 4, 50, 70), torch.nan)
        preprocess_batch(data, table, matrix, MEAN, STD, out)
        assert torch.equal(out[:, :3], expected)
        assert (out[:, 3] == 0).all()

    def test_no_images(self):
        out = torch.empty(0, 3, 32, 32)
        table, matrix = torch.empty(0, 12, dtype=torch.int64), torch.empty(0, 3, 4)
        data = torch.empty(0, dtype=torch.uint8)
        assert preprocess_batch(data, table, matrix, MEAN, STD, out) is out

    @pytest.mark.parametrize(
        ("name", "value", "error", "message"),
        [
            ("data", torch.zeros(9), TypeError, "data must be torch.uint8, got torch.float32"),
            ("table", torch.zeros(1, 11).long(), ValueError, r"table must be \[1, 12\]"),
            ("matrix", torch.zeros(2, 3, 4), ValueError, r"matrix must be \[1, 3, 4\]"),
            ("mean", torch.zeros(3).double(), TypeError, "mean must be torch.float32"),
            ("std", [1, 1, 1], TypeError, "std must be a tensor, got list"),
            ("out", None, TypeError, "out must be a tensor, got NoneType"),
            ("out", torch.zeros(()), ValueError, r"out must be \[\*, 3"),
            ("out", torch.zeros(1, 5, 9, 9), ValueError, r"out must be \[\*, 3, \*, \*\]"),
            (
                "out",
                torch.zeros(1, 3, 9, 18)[..., ::2],
                ValueError,
                "out must be contiguous or channels",
            ),
            ("std", torch.ones(6)[::2], ValueError, "std must be contiguous"),
            ("data", torch.zeros(9).byte().to("meta"), ValueError, "data must be on the device"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refuses_arguments(self, name, value, error, message):
        data, table, matrix = lay_out(PICTURES[:1])
        arguments = {"data": data, "table": table, "matrix": matrix, "mean": MEAN, "std": STD}
        arguments["out"] = torch.empty(1, 3, 50, 70)
        with pytest.raises(error, match=message):
            preprocess_batch(**{**arguments, name: value})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sample_bytes": 3}, "sample_bytes must be 1 or 2, got 3"),
            ({"height": 0}, "height and width must be at least 1"),
            ({"rotation": 45}, "rotation must be 0, 90, 180 or 270, got 45"),
            ({"uv_step": 4}, "uv_step"),
            ({"uv_pitch": 53, "uv_step": 2, "v_offset": 1965, "u_offset": 1964}, "uv_pitch"),
            ({"y_offset": -1}, "none negative"),
            ({"resized_height": 51}, r"resized_height must be in \[1, 50\], got 51"),
            ({"resized_width": 0}, r"resized_width must be in \[1, 70\], got 0"),
            ({"y_pitch": 4000}, r"planes must end within the \d+ bytes"),
        ],
        ids=lambda value: "" if isinstance(value, str) else "-".join(value),
    )
    def test_refuses_rows_of_the_table(self, change, message):
        data, table, matrix = lay_out(PICTURES[:1])
        table = torch.tensor([list(PlaneLayout(*table[0].tolist())._replace(**change))])
        with pytest.raises(ValueError, match=message):
            preprocess_batch(data, table, matrix, MEAN, STD, torch.empty(1, 3, 50, 70))


@pytest.mark.needs_cuda
class TestCuda:
    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
    @pytest.mark.parametrize("antialias", [False, True], ids=["bilinear", "antialias"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_kernel_equals_the_oracle(self, dtype, antialias, channels_last, channels):
        pictures = [*PICTURES, Picture(1080, 1920, (749, 1333), interleaved=True, slack=64)]
        size = (768, 1344)
        arguments = lay_out(pictures)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(
            len(pictures), channels, *size, dtype=dtype, device="cuda", memory_format=layout
        ).fill_(torch.nan)
        on_gpu = [tensor.cuda() for tensor in (*arguments, MEAN, STD)]
        preprocess_batch(*on_gpu, out, antialias=antialias)
        expected, tolerance = oracle(*arguments, size, antialias)
        if dtype != torch.float32:
            tolerance = tolerance + expected.abs() * torch.finfo(dtype).eps
        assert ((out[:, :3].cpu().double() - expected).abs() <= tolerance).all()
        assert (out[:, 3:] == 0).all()

    def test_one_graph_serves_any_source(self):
        first, second = lay_out(PICTURES[:2]), lay_out(PICTURES[2:4], seed=1)
        data = torch.zeros(max(len(first[0]), len(second[0])), dtype=torch.uint8, device="cuda")
        table, matrix = first[1].cuda(), first[2].cuda()
        mean, std, out = MEAN.cuda(), STD.cuda(), torch.empty(2, 3, 64, 96, device="cuda")

        def upload(arguments):
            data[: len(arguments[0])].copy_(arguments[0])
            table.copy_(arguments[1])
            matrix.copy_(arguments[2])

        upload(first)
        preprocess_batch(data, table, matrix, mean, std, out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            preprocess_batch(data, table, matrix, mean, std, out)
        upload(second)
        out.fill_(torch.nan)
        graph.replay()
        expected = preprocess_batch(*second, MEAN, STD, torch.empty(2, 3, 64, 96))
        assert torch.allclose(out.cpu(), expected, atol=1e-3)

    def test_the_host_does_not_wait(self):
        arguments = [tensor.cuda() for tensor in (*lay_out(PICTURES), MEAN, STD)]
        out = torch.empty(len(PICTURES), 3, 64, 96, device="cuda")
        preprocess_batch(*arguments, out)
        torch.cuda.set_sync_debug_mode("error")
        try:
            preprocess_batch(*arguments, out)
        finally:
            torch.cuda.set_sync_debug_mode("default")
