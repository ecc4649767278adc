import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from stream_rpn import preprocess
from stream_rpn.frame import Color, Frame, StreamRPNError
from stream_rpn.input_spec import InputSpec, frame_boxes, padded_size, resized_size
from stream_rpn.kernels.preprocess import preprocess_batch
from stream_rpn.kernels.preprocess_reference import preprocess_planes
from tests.preprocess_oracle import MEAN, STD

SPEC = InputSpec(min_size=48, max_size=80)
BT601 = Color("bt601", full_range=False, tagged=True)


def as_frame(image, rotation=0, color=BT601):
    height, width = image.height, image.width
    if rotation in (90, 270):
        height, width = width, height
    return Frame(0, 0, 0.0, width, height, rotation, color, image)


def coloured(rgb, height=40, width=64, pixel_format="yuv420p", matrix="bt601", full_range=False):
    """A frame of one colour, converted to YUV by swscale."""
    pixels = np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3))
    number = {"bt601": 5, "bt709": 1, "bt2020": 9}[matrix]
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(
        format=pixel_format,
        dst_colorspace=number,
        src_color_range=2,
        dst_color_range=2 if full_range else 1,
    )
    return as_frame(image, color=Color(matrix, full_range, tagged=True))


def noise(height, width, pixel_format="yuv420p"):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    image = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
    return image if pixel_format == "yuv420p" else image.reformat(format=pixel_format)


def first_image(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def accurate_rgb(image):
    """By swscale with its flags bilinear, accurate rounding and full chroma interpolation."""
    return image.reformat(format="rgb24", interpolation=0x2 | 0x40000 | 0x2000).to_ndarray()


def transform(spec):
    return GeneralizedRCNNTransform(
        spec.min_size, spec.max_size, list(spec.mean), list(spec.std), spec.size_divisor
    )


def denormalized(images):
    return images * STD[:, None, None] + MEAN[:, None, None]


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "limits", "expected"),
        [
            ((1080, 1920), (800, 1333), (749, 1333)),
            ((1920, 1080), (800, 1333), (1333, 749)),
            ((480, 640), (800, 1333), (800, 1066)),
            ((1080, 1920), (320, 640), (320, 568)),
            ((600, 1000), (600, 1000), (600, 1000)),
            ((1, 1), (5, 9), (5, 5)),
        ],
        ids=str,
    )
    def test_known(self, size, limits, expected):
        assert resized_size(*size, *limits) == expected

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 300),
        st.integers(1, 300),
        st.sampled_from([(80, 133), (32, 64), (97, 101), (33, 50)]),
    )
    def test_equal_torchvision(self, height, width, limits):
        try:
            expected, _ = transform(InputSpec(*limits)).eval().resize(torch.empty(3, height, width))
        except RuntimeError:
            with pytest.raises(StreamRPNError, match="elongated"):
                resized_size(height, width, *limits)
        else:
            assert resized_size(height, width, *limits) == expected.shape[1:]

    def test_padding(self):
        assert padded_size((749, 1333), 32) == (768, 1344)
        assert padded_size((64, 1), 32) == (64, 32)

    def test_boxes_return_as_in_torchvision(self):
        boxes = torch.rand(2, 7, 4) * 700
        sizes, frames = ((749, 1333), (800, 1066)), ((1080, 1920),) * 2
        for b in range(2):
            result = frame_boxes(boxes[b].numpy(), sizes[b], frames[b])
            assert torch.equal(
                torch.from_numpy(result), resize_boxes(boxes[b], list(sizes[b]), list(frames[b]))
            )


class TestSpec:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"min_size": 0}, "min_size"),
            ({"size_divisor": 0}, "size_divisor"),
            ({"std": (1, 0, 1)}, "std"),
            ({"mean": (1, 0)}, "mean"),
            ({"mean": (1, 0, float("nan"))}, "mean"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            InputSpec(**{"min_size": 10, "max_size": 20, **arguments})


class TestColor:
    @pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
    def test_black_white_and_grey(self, matrix):
        limited = preprocess.color_matrix(matrix, False)
        full = preprocess.color_matrix(matrix, True)
        for levels, found in (
            (0.0, limited @ torch.tensor([16.0, 128, 128, 1])),
            (1.0, limited @ torch.tensor([235.0, 128, 128, 1])),
            (0.0, full @ torch.tensor([0.0, 128, 128, 1])),
            (0.2, full @ torch.tensor([51.0, 128, 128, 1])),
        ):
            assert torch.allclose(found, torch.full((3,), levels), atol=1e-6)

    def test_bt709_primaries(self):
        # 100 % bars of ITU-R BT.709 in 8-bit limited range.
        bars = {(1, 0, 0): (63, 102, 240), (0, 1, 0): (173, 42, 26), (0, 0, 1): (32, 240, 118)}
        matrix = preprocess.color_matrix("bt709", False)
        for rgb, yuv in bars.items():
            found = matrix @ torch.tensor([*yuv, 1.0])
            assert torch.allclose(found, torch.tensor(rgb).float(), atol=0.01)

    def test_bit_depths_name_the_same_colours(self):
        sample = torch.tensor([81.0, 90, 240, 1])
        expected = preprocess.color_matrix("bt709", False) @ sample
        for shift in (0, 6):
            wide = sample * torch.tensor([*[4 * 2.0**shift] * 3, 1])
            found = preprocess.color_matrix("bt709", False, 10, shift) @ wide
            assert torch.allclose(found, expected, atol=1e-6)

    def test_unknown(self):
        with pytest.raises(ValueError, match="bt601, bt709, bt2020, got 'pal'"):
            preprocess.color_matrix("pal", False)

    @pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
    @pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
    @pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuv420p10le", "p010le"])
    def test_a_colour_comes_back(self, pixel_format, matrix, full_range):
        rgb = (200, 90, 40)
        frame = coloured(rgb, pixel_format=pixel_format, matrix=matrix, full_range=full_range)
        images, _ = preprocess.to_input([frame], SPEC)
        inside = denormalized(images)[0, :, :48, :76] * 255
        expected = torch.tensor(rgb)[:, None, None].float()
        # Three 8-bit roundings of Y, U and V reach a channel with weights of at most 1.2, 2.2.
        assert (inside - expected).abs().max() < 2.5


class TestFrames:
    @pytest.mark.parametrize("rotation", [0, 90, 180, 270])
    @pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuv420p10le", "p010le"])
    def test_packed_equals_direct(self, pixel_format, rotation):
        frames = [as_frame(noise(37, 51, pixel_format), rotation), as_frame(noise(38, 64), 90)]
        expected, sizes = preprocess.to_input(frames, SPEC)
        data = torch.full((sum(map(preprocess.packed_bytes, frames)) + 5,), 255, dtype=torch.uint8)
        table, matrix = torch.empty(2, 12, dtype=torch.int64), torch.empty(2, 3, 4)
        preprocess.pack(frames, SPEC, data, table, matrix)
        out = torch.full_like(expected, torch.nan)
        assert preprocess_batch(data, table, matrix, MEAN, STD, out) is out
        assert torch.equal(out, expected)
        assert table[:, -2:].tolist() == sizes.tolist()

    def test_rotation_is_clockwise(self):
        image = noise(36, 60)
        upright, _ = preprocess.to_input([as_frame(image)], SPEC)
        for rotation in (90, 180, 270):
            turned, sizes = preprocess.to_input([as_frame(image, rotation)], SPEC)
            height, width = sizes[0].tolist()
            expected = np.rot90(upright[0, :, :48, :80].numpy(), -rotation // 90, (1, 2))
            assert np.array_equal(turned[0, :, :height, :width], expected)

    def test_ten_bits_are_the_same_picture(self):
        eight = noise(40, 64)
        expected, _ = preprocess.to_input([as_frame(eight)], SPEC)
        for pixel_format in ("yuv420p10le", "p010le"):
            wide = as_frame(eight.reformat(format=pixel_format))
            assert (preprocess.to_input([wide], SPEC)[0] - expected).abs().max() < 0.1

    def test_the_batch_does_not_matter(self):
        frames = [as_frame(noise(37, 51)), as_frame(noise(64, 40)), as_frame(noise(50, 50), 270)]
        together, sizes = preprocess.to_input(frames, SPEC)
        assert together.shape == (3, 3, 96, 96)
        for index, frame in enumerate(frames):
            alone, size = preprocess.to_input([frame], SPEC)
            height, width = alone.shape[2:]
            assert torch.equal(together[index, :, :height, :width], alone[0])
            assert not together[index, :, height:].any()
            assert not together[index, :, :, width:].any()
            assert torch.equal(sizes[index], size[0])

    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_dtype_and_memory_format(self, dtype, channels_last):
        frames = [as_frame(noise(37, 51))]
        expected, _ = preprocess.to_input(frames, SPEC)
        images, _ = preprocess.to_input(frames, SPEC, dtype=dtype, channels_last=channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)
        assert torch.equal(images, expected.to(dtype))

    def test_into_a_larger_tensor(self):
        frames = [as_frame(noise(37, 51))]
        expected, sizes = preprocess.to_input(frames, SPEC)
        out = torch.full((1, 3, 96, 160), torch.nan)
        images, same_sizes = preprocess.to_input(frames, SPEC, out=out)
        assert images is out
        assert torch.equal(same_sizes, sizes)
        assert torch.equal(out[:, :, : expected.shape[2], : expected.shape[3]], expected)
        assert out.count_nonzero() == expected.count_nonzero()

    def test_planes_are_the_decoders_memory(self):
        image = noise(37, 51, "nv12")
        luma, u, v = preprocess.planes(as_frame(image))
        assert (luma.shape, u.shape, v.shape) == ((37, 51), (19, 26), (19, 26))
        assert luma.data_ptr() == image.planes[0].buffer_ptr
        assert v.data_ptr() == image.planes[1].buffer_ptr + 1

    def test_other_pixel_formats_are_refused(self):
        image = av.VideoFrame(16, 16, "yuv444p")
        with pytest.raises(StreamRPNError, match="yuv444p"):
            preprocess.to_input([as_frame(image)], SPEC)

    def test_too_small_a_buffer_is_refused(self):
        frames = [as_frame(noise(37, 51))]
        table, matrix = torch.empty(1, 12, dtype=torch.int64), torch.empty(1, 3, 4)
        data = torch.empty(sum(map(preprocess.packed_bytes, frames)) - 1, dtype=torch.uint8)
        with pytest.raises(ValueError, match="data must hold"):
            preprocess.pack(frames, SPEC, data, table, matrix)

    def test_planes_are_packed_without_other_threads_which_decoders_keep_busy(self, monkeypatch):
        frames = [as_frame(noise(480, 640))]
        table, matrix = torch.empty(1, 12, dtype=torch.int64), torch.empty(1, 3, 4)
        data = torch.empty(preprocess.packed_bytes(frames[0]), dtype=torch.uint8)
        # torch shares its copies out among its threads.
        monkeypatch.setattr(torch.Tensor, "copy_", lambda *_, **__: pytest.fail("a torch copy"))
        preprocess.pack(frames, SPEC, data, table, matrix)

    @pytest.mark.parametrize("limits", [(800, 1333), (320, 640)], ids=["800-1333", "320-640"])
    @pytest.mark.parametrize("name", ["intel-car-detection.mp4", "tud-campus.mp4", "vpf-test.mp4"])
    def test_real_clips_agree_with_the_straightforward_path(self, shared_data, name, limits):
        image = first_image(shared_data / "video" / name)
        spec = InputSpec(*limits)
        matrix = "bt709" if image.colorspace == 1 else "bt601"
        images, _ = preprocess.to_input([as_frame(image, color=Color(matrix, False, True))], spec)
        for pixels, mean, bias in (
            (image.to_ndarray(format="rgb24"), 1.5, 1.5),
            (accurate_rgb(image), 0.5, 0.05),
        ):
            rgb = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
            expected = transform(spec).eval()([rgb])[0].tensors
            levels = (denormalized(images) - denormalized(expected)) * 255
            assert levels.abs().mean() < mean
            assert levels.mean().abs() < bias
            assert levels.abs().max() < 30

    @pytest.mark.parametrize("name", ["intel-car-detection.mp4", "tud-campus.mp4", "vpf-test.mp4"])
    def test_small_planes_differ_from_the_exact_formula_by_half_a_level(self, shared_data, name):
        frame = as_frame(first_image(shared_data / "video" / name))
        spec = InputSpec(240, 480, antialias=True)
        images, sizes = preprocess.to_input([frame], spec)
        exact = torch.zeros_like(images[0])
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        size = tuple(sizes[0].tolist())
        preprocess_planes(
            preprocess.planes(frame), preprocess.frame_matrix(frame), mean, std, exact,
            size=size, antialias=True,
        )  # fmt: skip
        levels = (denormalized(images) - denormalized(exact[None])) * 255
        assert levels.abs().mean() < 0.5
        assert levels.mean().abs() < 0.05

    def test_a_rotated_clip_stands_upright(self, shared_data):
        folder = shared_data / "video" / "odd"
        upright = preprocess.to_input([as_frame(first_image(folder / "rot_video_0.mov"))], SPEC)
        image = first_image(folder / "rot_video_90.mov")
        frame = as_frame(image, rotation=-image.rotation % 360)
        assert (frame.width, frame.height) == (320, 568)
        assert upright[1].tolist() == [[45, 80]]
        assert preprocess.to_input([frame], SPEC)[1].tolist() == [[80, 45]]


class TestImages:
    def test_equal_torchvision_to_the_bit(self):
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator)
        floats = torch.rand(3, 33, 81, generator=generator)
        expected = transform(SPEC).eval()([pixels / 255, floats])[0]
        images, sizes = preprocess.image_to_input([pixels, floats], SPEC)
        assert torch.equal(images, expected.tensors)
        assert [tuple(size) for size in sizes.tolist()] == expected.image_sizes
        array = pixels.permute(1, 2, 0).numpy()
        alone, _ = preprocess.image_to_input(array, SPEC)
        assert torch.equal(alone, preprocess.image_to_input(pixels, SPEC)[0])

    def test_channels_last_half(self):
        images, _ = preprocess.image_to_input(
            torch.rand(3, 50, 70), SPEC, dtype=torch.bfloat16, channels_last=True
        )
        assert images.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (torch.zeros(1, 8, 8), ValueError, r"image 0 must be \[3, H, W\]"),
            (np.zeros((3, 8, 8), np.uint8), ValueError, r"image 0 must be \[H, W, 3\]"),
            (torch.zeros(3, 0, 8), ValueError, r"\[3, H, W\]"),
            (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError, "uint8 or floating"),
            (torch.full((3, 8, 8), 255.0), ValueError, "got 255; divide it by 255"),
            (np.full((8, 8, 3), np.nan, np.float32), ValueError, "got nan; NaN is no colour"),
        ],
        ids=["grey-tensor", "channels-first-array", "empty", "int64", "levels", "not-a-number"],
    )
    def test_refuses(self, image, error, message):
        with pytest.raises(error, match=message):
            preprocess.image_to_input(image, SPEC)
