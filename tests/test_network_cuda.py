"""The network's GPU form on a GPU, with frames made in memory: nothing here needs PyAV.

What makes sense without a GPU runs on the CPU, too, where streams and graphs are stand-ins.
"""

import subprocess
import sys
import threading
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stream_rpn import models
from stream_rpn.embedding import Embedding
from stream_rpn.frame import Color, Frame
from stream_rpn.kernels import dispatch
from stream_rpn.network import graph
from stream_rpn.network.eager import EagerNetwork
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.network.graph import PATIENCE
from stream_rpn.network.upload import upload
from stream_rpn.preprocess import to_input
from stream_rpn.timing import StageTimes
from tests.agreement import Selection, assert_same_selection, expectations

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4
CUDA = pytest.param("cuda", marks=pytest.mark.needs_cuda)


class Plane(np.ndarray):
    """Memory that looks like a plane of PyAV's."""

    @property
    def line_size(self):
        return self.strides[0]


def frames(count, height=120, width=160):
    """Pictures that differ: blocks of random brightness and colour, in NV12."""
    color = Color("bt601", full_range=False, tagged=True)
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        blocks = random.integers(16, 236, (height // 8, width // 8), dtype=np.uint8)
        luma = blocks.repeat(8, axis=0).repeat(8, axis=1)
        chroma = random.integers(64, 192, (height // 2, width), dtype=np.uint8)
        image = SimpleNamespace(
            planes=[np.ascontiguousarray(luma).view(Plane), chroma.view(Plane)],
            format=SimpleNamespace(name="nv12"),
            sw_format=None,
            height=height,
            width=width,
        )
        made.append(Frame(index, index, index / 25, width, height, 0, color, image))
    return made


@pytest.fixture(autouse=True)
def _same_algorithms(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(
    device, *, form=GPUNetwork, dtype=torch.float32, features=False, embed=False, **options
):
    torch.manual_seed(0)
    rpn = models.find("tiny").build()
    rpn.input_spec = replace(rpn.input_spec, min_size=96, max_size=192, antialias=False)
    rpn.to(device, dtype, memory_format=torch.channels_last)
    device = torch.device(device, 0) if device == "cuda" else torch.device(device)
    if embed:
        options["embedding"] = Embedding.of(rpn)
    return form(rpn, device, dtype, BATCH, features=features, images=True, **options)


def run(made, given):
    times = StageTimes()
    queues = made.queues(iter(given), times)
    try:
        return list(queues), times
    finally:
        queues.close()


def assert_same(ours, theirs):
    assert [p.frame for p in ours] == [p.frame for p in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) > 10
        for name in ("boxes", "scores", "levels", "anchors", "input_boxes"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.needs_cuda),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.needs_cuda),
    ],
)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_graphs_give_what_launching_kernel_by_kernel_gives(device, dtype, fused, monkeypatch):
    # Fused convolutions know nothing of this, and are not used with it.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not fused)
    # Enough for the patience, two batches and a part of one.
    count = (PATIENCE + 2) * BATCH + 2 if device == "cuda" else (PATIENCE + 1) * BATCH + 2
    given = frames(count)
    expected, eager = run(network(device, graphs=False, dtype=dtype), given)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found, graphed = run(network(device, dtype=dtype), given)
        again, _ = run(network(device, dtype=dtype), given)
    assert "network" not in eager.stages
    if device == "cuda":
        assert graphed.stages["network"].count == count - PATIENCE * BATCH
    assert_same(found, expected)
    assert_same(again, found)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_sources_of_several_sizes_share_graphs(device):
    given = [
        *frames(20), *frames(9, 160, 120), *frames(20, 240, 320), *frames(9, 120, 160),
    ]  # fmt: skip
    expected, _ = run(network(device, graphs=False), given)
    found, _ = run(network(device), given)
    assert_same(found, expected)


@pytest.mark.numeric
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_agrees_with_the_form_for_cpus(device):
    given = frames(6)
    found, _ = run(network(device), given)
    eager = network("cpu", form=EagerNetwork)
    expected, _ = run(eager, given)
    rpn = eager.rpn
    images, sizes = to_input(given, rpn.input_spec)
    with torch.inference_mode():
        maps = list(rpn.features(images).values())
    facts = expectations(
        lambda: rpn.head(list(rpn.features(images).values())),
        rpn.base_anchors,
        rpn.strides(images, maps),
        sizes,
        **asdict(rpn.proposal_spec),
    )
    for mine, other, (limits, candidates) in zip(found, expected, facts, strict=True):
        sides = (
            Selection(*map(torch.from_numpy, (p.input_boxes, p.scores, p.levels, p.anchors)))
            for p in (mine, other)
        )
        assert_same_selection(*sides, limits, candidates)
        assert mine.input_size == other.input_size
        assert mine.strides == other.strides


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_feature_maps_survive_later_batches(device):
    given = frames(28)
    expected, _ = run(network(device, graphs=False, features=True), given)
    found, _ = run(network(device, features=True), given)
    for mine, other in zip(found, expected, strict=True):
        assert mine.features.keys() == other.features.keys()
        for name, feature in other.features.items():
            torch.testing.assert_close(mine.features[name], feature)


@pytest.mark.parametrize("device", [CUDA])
def test_vectors_of_boxes_are_those_of_eager_launches(device):
    given = frames(28)
    expected, _ = run(network(device, graphs=False, embed=True), given)
    found, _ = run(network(device, embed=True), given)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine.embeddings) == len(mine)
        np.testing.assert_allclose(mine.embeddings, other.embeddings, atol=2e-3)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_two_sources_at_a_time_share_a_network(device):
    made, given = network(device), frames(32)
    expected, _ = run(made, given)
    results = {}
    threads = [
        threading.Thread(target=lambda name=name: results.update({name: run(made, given)[0]}))
        for name in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(results[0], expected)
    assert_same(results[1], expected)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_leaving_early_ends_the_threads(device):
    before = threading.active_count()
    queues = network(device).queues(iter(frames(200)), StageTimes())
    assert next(iter(queues)).frame == 0
    queues.close()
    assert threading.active_count() == before


@pytest.mark.needs_cuda
def test_other_threads_may_use_cuda_during_a_capture():
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            torch.empty(1 << 20, device="cuda").fill_(1.0).sum().item()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            _, times = run(network("cuda"), frames(30))
    finally:
        stop.set()
        thread.join()
    assert "network" in times.stages


@pytest.mark.needs_cuda
def test_launching_waits_for_nothing():
    made = network("cuda")
    run(made, frames(30))
    uploads = upload(frames(BATCH), made._ring(), StageTimes(), keep_images=True)
    slot = next(uploads)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = made._launch(slot)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(made._collect(launched, StageTimes())) == BATCH
    uploads.close()


@pytest.mark.needs_cuda
def test_the_network_has_a_stream_that_no_copy_has():
    made = network("cuda")
    others = [torch.cuda.Stream() for _ in range(64)]
    assert made._stream not in others
    run(made, frames(2 * BATCH))
    run(made, frames(2 * BATCH))
    assert len(made._rings) == 1


@pytest.mark.needs_cuda
def test_memory_that_was_never_written_is_not_read(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    given = frames((PATIENCE + 2) * BATCH)
    expected, _ = run(network("cuda", dtype=torch.bfloat16), given)
    # What is allocated next lies where this was.
    torch.full((1 << 28,), torch.nan, device="cuda")
    found, _ = run(network("cuda", dtype=torch.bfloat16), given)
    assert_same(found, expected)


def capture_that_fails():
    """Runs in a process of its own: what a failed capture leaves behind would meet other tests."""
    given = frames(30)
    expected, _ = run(network("cuda", graphs=False), given)
    made = network("cuda")
    forward = made._forward

    def waits(*args):
        output = forward(*args)
        # What no graph can hold; allowed outside of a capture.
        output.kept.count.sum().item()
        return output

    made._forward = waits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, times = run(made, given)
    (said,) = [str(w.message) for w in caught if "could not be captured" in str(w.message)]
    assert "\n" not in said
    assert made.facts()["without_cuda_graph"] in said
    assert "network" not in times.stages
    assert_same(found, expected)

    # The process goes on: random numbers, memory that another stream used, further captures.
    torch.randn(8, device="cuda")
    assert graph.why_no_capture(torch.device("cuda", 0)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        again, times = run(network("cuda"), given)
    assert "network" in times.stages
    assert_same(again, expected)
    torch.randn(8, device="cuda")
    torch.cuda.synchronize()
    before, other = torch.cuda.memory_allocated(), torch.cuda.Stream()
    for _ in range(8):
        torch.empty(1 << 24, dtype=torch.uint8, device="cuda").record_stream(other)
        torch.cuda.synchronize()
    torch.empty(1, device="cuda")
    assert torch.cuda.memory_allocated() - before < 3 << 24
    torch.cuda.empty_cache()


@pytest.mark.needs_cuda
def test_a_capture_that_fails_leaves_a_working_process():
    code = (
        "import torch; torch.backends.cudnn.deterministic = True\n"
        "torch.backends.cudnn.allow_tf32 = False\n"
        "from tests.test_network_cuda import capture_that_fails; capture_that_fails()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.needs_cuda
def test_a_triton_kernel_that_fails_is_reported_once_and_nothing_is_captured(monkeypatch):
    given = frames(30)
    expected, _ = run(network("cuda", graphs=False), given)
    monkeypatch.setattr(dispatch, "_broken", set())

    def fails(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("stream_rpn.kernels.nms_triton.nms_triton", fails)
    made = network("cuda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, times = run(made, given)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert "network" not in times.stages
    assert made.facts() == {"without_cuda_graph": "the Triton kernel of nms failed"}
    assert_same(found, expected)
