"""`stream-rpn bench`: what it measures, what it makes of it, and what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from stream_rpn import api, cli
from stream_rpn.commands import bench as command
from stream_rpn.frame import StreamRPNError
from stream_rpn.input_spec import frame_boxes
from stream_rpn.kernels.boxes import iou
from stream_rpn.measure import meter, peers, stages
from stream_rpn.measure.meter import Meter, Usage
from stream_rpn.measure.stages import BatchReport, Looped, Part
from stream_rpn.models.checkpoint import load_model, save_weights
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.pipeline import Pipeline
from stream_rpn.preprocess import image_to_input
from stream_rpn.queues import prefetch
from stream_rpn.rpn import RPN
from stream_rpn.sources.synthetic import SyntheticVideo
from tests.agreement import assert_same_selection, expectations, scored
from tests.test_models import enliven, picture

FRAMES = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with SyntheticVideo.parse(f"synthetic:96x64@10,{FRAMES}").encoded() as encoded:
        path.write_bytes(encoded.read())
    return str(path)


def small(batch: int = 2) -> Pipeline:
    return Pipeline(
        api.load("tiny", size=64, top=20),
        engine="torch",
        device="cpu",
        dtype="float32",
        batch=batch,
    )


def part(name: str, fps: float, cpu_ms: float, **stages_ms: float) -> Part:
    usage = Usage(seconds=100 / fps, cpu_seconds=cpu_ms / 10)
    return Part(name, 100, usage, {}, {k: {"mean_ms": v} for k, v in stages_ms.items()})


def report(decode: Part, network: Part, sink: Part, whole: Part) -> BatchReport:
    return BatchReport(1, decode, network, network, sink, whole)


class TestStages:
    def test_a_clip_is_read_again_and_frames_keep_counting(self, clip):
        with Looped(clip) as source:
            frames = iter(source)
            assert [next(frames).index for _ in range(2 * FRAMES + 1)] == list(range(11))
        assert sorted(source.handed_out) == list(range(11))

    def test_decoding_alone_counts_every_frame_in_the_time(self, clip):
        decode = stages.decode_alone(clip, small(), 0.2)
        assert decode.frames > FRAMES
        assert 0.2 <= decode.usage.seconds < 2
        assert decode.fps == pytest.approx(decode.frames / decode.usage.seconds)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_whole_batches_are_measured(self, clip, tmp_path, batch):
        pipeline = small(batch)
        frames = stages.sample(clip)
        unqueued, proposals = stages.network_unqueued(pipeline, frames, 0.1)
        found = [
            stages.network_alone(pipeline, frames, 0.1),
            unqueued,
            stages.whole(pipeline, clip, tmp_path / "o.jsonl", 0.1),
        ]
        assert all(each.frames and each.frames % batch == 0 for each in found)
        assert {"preprocess", "backbone", "head", "proposals"} <= set(unqueued.stages_ms)
        # The stages of a batch follow one another: together they are the wait for the batch.
        total = batch * sum(stage["mean_ms"] for stage in unqueued.stages_ms.values())
        assert 0.5 * unqueued.latency_ms["mean_ms"] < total < 1.1 * unqueued.latency_ms["mean_ms"]
        assert found[2].latency_ms["p99_ms"] >= found[2].latency_ms["p50_ms"] > 0
        written = (tmp_path / "o.jsonl").read_text().splitlines()
        assert len(written) >= found[2].frames + 2
        sink = stages.sink_alone(pipeline, clip, proposals, tmp_path / "s.jsonl")
        assert sink.frames > 0

    def test_the_gpu_form_is_measured_the_same_way(self, clip):
        pipeline = small()
        rpn, device = pipeline.model, torch.device("cpu")
        pipeline.network = GPUNetwork(rpn, device, torch.float32, 2, features=False, images=False)
        frames = stages.sample(clip)
        unqueued, _ = stages.network_unqueued(pipeline, frames, 0.05)
        assert {"pack", "upload", "preprocess", "backbone"} <= set(unqueued.stages_ms)
        assert stages.network_alone(pipeline, frames, 0.05).frames > 0

    def test_overlap_is_against_the_slowest_part(self):
        found = report(
            part("decode", 50, 1), part("network", 25, 2), part("sink", 900, 0.1),
            part("whole", 20, 3),
        )  # fmt: skip
        assert found.slowest.name == "network"
        assert found.overlap == pytest.approx(0.8)

    def test_the_bottleneck_is_named_with_its_stage(self):
        network = part("network", 25, 2, backbone=30, head=10)
        found = report(part("decode", 50, 1), network, part("sink", 900, 0.1), network)
        assert "network, mostly its backbone (75 % of it) is the bottleneck" in found.bottleneck()
        whole = part("network", 25, 2, preprocess=1, network=39)
        found = report(part("decode", 50, 1), whole, part("sink", 900, 0.1), whole)
        assert "The network is the bottleneck" in found.bottleneck()

    def test_few_cores_are_named_where_they_set_the_pace(self, monkeypatch):
        monkeypatch.setattr(stages, "available_cores", lambda: 2)
        found = report(
            part("decode", 100, 20), part("network", 50, 40), part("sink", 900, 0.0),
            part("whole", 30, 60),
        )  # fmt: skip
        assert found.cores_fps == pytest.approx(2000 / 60)
        assert found.bottleneck().startswith("The 2 cores set the pace")
        monkeypatch.setattr(stages, "available_cores", lambda: 64)
        assert "decode" not in found.bottleneck()


class TestMeter:
    def test_time_work_and_memory(self):
        began = time.perf_counter()
        with Meter() as used:
            until = time.perf_counter() + 0.2
            block = torch.ones(64 << 20, dtype=torch.uint8)
            while time.perf_counter() < until:
                block.sum()
        usage = used.usage
        assert 0.2 <= usage.seconds < time.perf_counter() - began
        assert 0 < usage.cpu_utilisation <= 1.1
        assert usage.peak_memory_mb > 64
        assert usage.others_utilisation >= 0
        assert usage.gpu_joules is None

    def test_energy_of_the_packages_and_not_of_their_parts(self, tmp_path):
        for name, wrap in (("intel-rapl:0", 10e6), ("intel-rapl:0:0", 10e6)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "energy_uj").write_text("9000000")
            (tmp_path / name / "max_energy_range_uj").write_text(str(int(wrap)))
        with Meter(rapl=tmp_path) as used:
            for name in ("intel-rapl:0", "intel-rapl:0:0"):
                (tmp_path / name / "energy_uj").write_text("1000000")
        assert used.usage.cpu_joules == pytest.approx(2)

    def test_a_system_that_tells_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(meter, "resident_mb", lambda: None)
        with Meter(rapl=tmp_path / "none") as used:
            pass
        assert (used.usage.cpu_joules, used.usage.peak_memory_mb) == (None, None)


class TestPeers:
    @pytest.mark.numeric
    @pytest.mark.parametrize("model", ["tiny", "mobilenet_v3_large_320_fpn"])
    def test_torchvision_finds_the_same_boxes_with_the_same_weights(self, model, tmp_path):
        image = torch.rand(3, 200, 300, generator=torch.Generator().manual_seed(0))
        image = (image * 255).to(torch.uint8)
        weights = str(tmp_path / "lively.safetensors")
        lively = load_model(model, "random", fold=False)
        with torch.no_grad():
            enliven(lively.head, list(lively.features(picture(256, 320)[None]).values()))
        save_weights(lively, weights, model=model)
        pipeline = Pipeline(
            api.load(model, weights, top=50), engine="torch", device="cpu", dtype="float32"
        )
        theirs = peers.TorchvisionProposer(model, weights, top=50)
        with torch.inference_mode():
            (found,) = peers.torchvision_boxes(theirs, pipeline.device, tuned=False)([image])
            (ours,) = peers.our_boxes(pipeline)([image])
        rpn = pipeline.model
        inputs, sizes = image_to_input(image, rpn.input_spec)
        with torch.inference_mode():
            maps = list(rpn.features(inputs).values())
        ((limits, candidates),) = expectations(
            lambda: rpn.head(list(rpn.features(inputs).values())),
            rpn.base_anchors,
            rpn.strides(inputs, maps),
            sizes,
            **asdict(rpn.proposal_spec),
        )
        # In pixels of the image, as both give them.
        growth = float((torch.tensor(image.shape[1:]) / sizes[0]).max())
        size, frame_size = tuple(sizes[0].tolist()), tuple(image.shape[1:])
        boxes = torch.from_numpy(frame_boxes(candidates.boxes.numpy(), size, frame_size))
        limits = replace(limits, boxes=limits.boxes * growth, min_size=limits.min_size * growth)
        candidates = replace(candidates, boxes=boxes)
        sides = [scored(boxes, limits, candidates) for boxes in (ours, found)]
        assert_same_selection(*sides, limits, candidates)

    def test_torchvision_gets_all_of_our_limits(self):
        limits = {"nms_thresh": 0.6, "score_thresh": 0.1, "min_size": 7.0}
        rpn = load_model("tiny", "random", fold=False).override(**limits)
        _, _, theirs = peers._of_parts(rpn, None)
        assert {name: getattr(theirs, name) for name in limits} == limits

    def test_a_head_that_torchvision_does_not_know(self):
        with pytest.raises(StreamRPNError, match="two-class head of 'vgg16'"):
            peers.TorchvisionProposer("vgg16", "random")

    @pytest.mark.parametrize("name", list(peers.DECODERS))
    def test_decoders_give_every_frame_in_rgb(self, clip, name):
        package, decode = peers.DECODERS[name]
        pytest.importorskip(package)
        batches = list(decode(clip, 2))
        images = [image for batch in batches for image in batch]
        assert [len(batch) for batch in batches] == [2, 2, 1]
        expected = [image for batch in peers.pyav(clip, 1) for image in batch]
        for image, right in zip(images, expected, strict=True):
            assert image.shape == (3, 64, 96)
            assert float((image.float() - right.float()).abs().mean()) < 6

    def test_what_is_not_installed_is_skipped_by_name(self, clip, tmp_path, monkeypatch):
        monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
        skipped = peers.peers(small(), "tiny", size=64)[-1]
        row = peers.measure_peer(skipped, clip, tmp_path / "o.jsonl", 0.1)
        assert row["skipped"] == "ultralytics is not installed"

    def test_what_fails_is_skipped_with_its_reason(self, tmp_path):
        def broken(images):
            raise ValueError("no such thing")

        peer = peers.Peer("theirs", "PyAV to RGB", broken)
        row = peers.measure_peer(peer, str(tmp_path / "none.mp4"), tmp_path / "o.jsonl", 0.1)
        assert row["skipped"].startswith("FileNotFoundError")


def by_torch(rpn: RPN) -> Pipeline:
    return Pipeline(rpn, engine="torch", device="cpu", dtype="float32")


class TestScripts:
    def test_they_find_what_we_find(self, clip, tmp_path):
        pytest.importorskip("openvino")
        rpn = api.load("nanodet_m", size=96, top=20)
        found = peers.scripts(by_torch(rpn))
        assert [peer.name for peer in found] == [
            "OpenCV + OpenVINO script", "PyAV + OpenVINO script, tuned",
        ]  # fmt: skip
        assert peers.scripts(by_torch(api.load("tiny", size=64))) == []
        rpn.head.certainty = 0.0
        with by_torch(rpn).open(clip) as stream:
            best = torch.from_numpy(next(iter(stream)).boxes[:5])
        for peer in found:
            if not peer.missing:
                assert len(list(peer.frames(clip, tmp_path / "o.jsonl"))) == FRAMES
                lines = (tmp_path / "o.jsonl").read_text().splitlines()
                boxes = torch.tensor(json.loads(lines[0])["boxes"])
                assert float((iou(best, boxes).amax(1) > 0.6).float().mean()) >= 0.6


class TestCommand:
    def bench(self, *arguments):
        return cli.main(
            ["bench", *arguments, "--engine", "torch", "--size", "64", "--seconds", "0.05"]
        )

    def test_table_json_and_picture(self, clip, tmp_path, capsys, monkeypatch):
        # One peer is enough here: each has its own test.
        few = peers.peers
        monkeypatch.setattr(peers, "peers", lambda *args, **kw: few(*args, **kw)[:1])
        monkeypatch.setattr(peers, "scripts", lambda pipeline: [])
        files = [str(tmp_path / "b.json"), str(tmp_path / "b.png")]
        arguments = ["--batch", "1,2", "--compare", "--json", files[0], "--png", files[1]]
        assert self.bench(clip, *arguments) == 0
        out = capsys.readouterr().out
        for word in ("decode", "backbone", "sink", "overlap", "latency p99", "torchvision loop"):
            assert word in out
        written = json.loads((tmp_path / "b.json").read_text())
        assert [row["batch"] for row in written["batches"]] == [1, 2]
        assert written["machine"]["torch"] == torch.__version__.split("+")[0]
        assert written["bottleneck"] in out
        ours, theirs = written["compared"]
        assert theirs["ratio"] == pytest.approx(ours["fps"] / theirs["fps"], rel=0.01)
        for row in written["batches"]:
            parts = [row[name]["fps"] for name in ("decode", "network", "sink")]
            assert row["overlap"] == pytest.approx(row["whole"]["fps"] / min(parts), rel=0.01)
        assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")

    def test_batches_nobody_asked_for_are_left_out_where_they_take_long(
        self, clip, capsys, monkeypatch
    ):
        monkeypatch.setattr(command, "BATCHES", "1,100000")
        assert self.bench(clip) == 0
        assert "Batch 100000 is left out" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["-"], "standard input can be read only once"),
            (["nowhere.mp4"], "no such file"),
            (["synthetic:64x64", "--json", "no/such/folder.json"], "folder"),
        ],
    )
    def test_what_cannot_be_measured(self, capsys, arguments, sentence):
        assert self.bench(*arguments) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert "Traceback" not in err

    def test_batches_that_are_none(self, capsys):
        with pytest.raises(SystemExit) as ended:
            self.bench("synthetic:64x64", "--batch", "1,x")
        assert ended.value.code == 2
        assert "--batch must be auto or a number from 1 up, got 'x'" in capsys.readouterr().err

    def test_ctrl_c_ends_it_cleanly(self, clip):
        command = [sys.executable, "-m", "stream_rpn", "bench", clip, "--size", "64"]
        root = str(Path(__file__).resolve().parents[1])
        process = subprocess.Popen(
            [*command, "--seconds", "2"], env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "decode alone" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130
        assert "Traceback" not in err

    def test_a_folder_of_videos(self, tmp_path, clip, capsys):
        for name in "ab":
            (tmp_path / f"{name}.mp4").write_bytes(Path(clip).read_bytes())
        assert self.bench(str(tmp_path)) == 2
        assert "holds 2 videos" in capsys.readouterr().err


def test_an_error_while_measuring_reaches_the_user(clip):
    def fails():
        yield "first"
        raise StreamRPNError("no")

    steps = prefetch(fails(), 1, name="bench")
    assert next(steps) == "first"
    with pytest.raises(StreamRPNError):
        next(steps)
