"""Frames in the GPU proof: preprocessing, the network and whole pipelines."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.gpu_record import PREDICTED_US, Proof
from stream_rpn.frame import Color, Frame
from stream_rpn.input_spec import InputSpec
from stream_rpn.kernels.preprocess import PlaneLayout, preprocess_batch
from stream_rpn.network.gpu import GPUNetwork
from stream_rpn.preprocess import color_matrix
from stream_rpn.queues import prefetch
from stream_rpn.timing import StageTimes

if TYPE_CHECKING:
    from stream_rpn.pipeline import Pipeline, Selection, Stream


def time_preprocess(proof: Proof) -> None:
    """Times planes → network input, against copy bandwidth."""
    formats = (
        (("small", 120, 214),) if proof.dry else (("1080p", 1080, 1920), ("2160p", 2160, 3840))
    )
    height, width = (96, 160) if proof.dry else (768, 1344)
    resized = (93, 160) if proof.dry else (749, 1333)
    dtype = torch.bfloat16
    wrong = 0
    for name, rows, columns in formats:
        for batch in (1, 2) if proof.dry else (1, 8):
            data, table, matrix = packed(batch, rows, columns, resized, proof.device)
            spec = InputSpec(800, 1333)
            mean = torch.tensor(spec.mean, device=proof.device)
            std = torch.tensor(spec.std, device=proof.device)
            layout = torch.channels_last
            out_bytes = batch * 3 * height * width * 2
            count = proof.timer.num_sets(data.nbytes + out_bytes)
            outs = [
                torch.empty(
                    (batch, 3, height, width),
                    dtype=dtype,
                    device=proof.device,
                    memory_format=layout,
                )
                for _ in range(count)
            ]
            datas = [data.roll(16 * i) for i in range(count)]
            row = proof.timer.graphs(
                [
                    partial(preprocess_batch, planes, table, matrix, mean, std, out)
                    for planes, out in zip(datas, outs, strict=True)
                ]
            )
            expected = torch.empty((batch, 3, height, width), dtype=dtype)
            preprocess_batch(data.cpu(), table.cpu(), matrix.cpu(), mean.cpu(), std.cpu(), expected)
            preprocess_batch(datas[0], table, matrix, mean, std, outs[0])
            difference = float((outs[0].cpu().float() - expected.float()).abs().max())
            moved = data.nbytes + out_bytes
            wrong += not difference < 0.04
            proof.add(
                "preprocess",
                name=f"{name} NV12 → {height}×{width} bf16 b{batch}",
                us=round(row["median_ms"] * 1e3, 1),
                p10_us=round(row["p10_ms"] * 1e3, 1),
                p90_us=round(row["p90_ms"] * 1e3, 1),
                predicted_us=PREDICTED_US.get((f"preprocess {name}", batch)),
                mbytes=round(moved / 1e6, 2),
                of_copy=proof.share(moved, row["median_ms"]),
                largest_difference=round(difference, 4),
                verdict="equal" if difference < 0.04 else "WRONG",
                runs=row["runs"],
            )
    if wrong:
        raise AssertionError(f"{wrong} inputs differ")


def time_network(proof: Proof) -> None:
    """Times upload → graph → download of whole batches, on frames made in memory: no decoder."""
    from stream_rpn.api import load

    name = "mobilenet_v3_large_320_fpn" if proof.dry else "resnet50_fpn"
    batch, rows, columns = (2, 120, 214) if proof.dry else (8, 1080, 1920)
    dtype = torch.float32 if proof.dry else torch.bfloat16
    rpn = load(name, "random")
    rpn.to(proof.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    total = 6 if proof.dry else 400
    for graphs in (False, True):
        network = GPUNetwork(
            rpn, proof.device, dtype, batch, graphs=graphs, features=False, images=False
        )
        for run in ("first", "second"):
            times, start = StageTimes(), time.perf_counter()
            decoded = prefetch(made_up_frames(total, rows, columns), 2 * batch + 2, name="decode")
            with network.queues(decoded, times) as queues:
                count = sum(1 for _ in queues)
            proof.add(
                "network",
                name=f"{name} b{batch} {'one graph' if graphs else 'kernel by kernel'}, {run} run",
                frames=count,
                frames_per_second=round(count / (time.perf_counter() - start), 1),
                stages={k: v["p50_ms"] for k, v in times.summary().items()},
            )
    if not proof.dry and not network._graphs._graphs:
        raise AssertionError("no graph was captured")


def run_pipeline(proof: Proof) -> None:
    """Runs whole pipelines from an encoded file to JSON lines, and what others would run."""
    if importlib.util.find_spec("av") is None:
        proof.add("pipeline", name="all", note="skipped: PyAV is not installed")
        return
    from stream_rpn.api import load
    from stream_rpn.frame import StreamRPNError
    from stream_rpn.measure import peers
    from stream_rpn.pipeline import Pipeline, Selection

    size, count, repeats = ((160, 120), 6, 2) if proof.dry else ((1920, 1080), 300, 3)
    seconds = 0.1 if proof.dry else 1.5
    models = ("tiny",) if proof.dry else ("resnet50_fpn", "nanodet_m")
    with tempfile.TemporaryDirectory() as folder:
        clip = encoded_clip(Path(folder), size, count, repeats)
        for model in models:
            made = Pipeline(
                load(model, "random"), engine="torch", device=str(proof.device), batch=8
            )
            for decoder, sources in (("cpu", 1), ("nvdec", 1), ("cpu", 4), ("nvdec", 4)):
                if proof.dry and decoder == "nvdec":
                    continue
                selection = Selection(decoder=decoder)
                try:
                    # The first run compiles and captures.
                    for _ in range(2):
                        started = time.perf_counter()
                        streams, _ = run_side_by_side(made, clip, selection, sources)
                        took = time.perf_counter() - started
                except StreamRPNError as error:
                    proof.add("pipeline", name=f"{model}, {decoder}", note=str(error))
                    continue
                frames = sum(stream.num_results for stream in streams)
                proof.add(
                    "pipeline",
                    name=f"stream-rpn {model}, {streams[0].info.decoder}, {sources} at a time",
                    frames=frames,
                    frames_per_second=round(frames / took, 1),
                    stages={k: v["p50_ms"] for k, v in streams[0].times.summary().items()},
                )
            # Of one model, as they take their time.
            for peer in peers.peers(made, model, "random") if model == models[0] else ():
                row = peers.measure_peer(peer, str(clip), Path(folder) / "out.jsonl", seconds)
                proof.add(
                    "pipeline",
                    name=f"{peer.name}, {model}, {peer.batch} a batch",
                    frames=row.get("frames"),
                    frames_per_second=row.get("fps"),
                    note=row.get("skipped"),
                )
            del made


def run_side_by_side(
    pipeline: Pipeline, clip: Path, selection: Selection, count: int
) -> tuple[list[Stream], float]:
    """Streams the clip `count` times through one network at a time, each written as JSON lines.

    Returns:
        The streams, and the seconds from the first result of any to the last.
    """
    from stream_rpn import sinks

    marks: list[float] = []

    def run(index: int) -> Stream:
        out = clip.with_name(f"{index}.jsonl")
        with (
            pipeline.open(str(clip), selection) as stream,
            sinks.open_sink(str(out), overwrite=True) as sink,
        ):
            header = sinks.make_header(stream.info, **pipeline.provenance(selection))
            sink.begin(header, stream.info)
            for proposals in stream:
                with stream.times.measure("sinks"):
                    sink.write(proposals)
                marks.append(time.perf_counter())
            sink.end(stream.end())
        return stream

    with ThreadPoolExecutor(count) as threads:
        streams = list(threads.map(run, range(count)))
    return streams, max(marks) - min(marks)


def encoded_clip(folder: Path, size: tuple[int, int], count: int, repeats: int) -> Path:
    """Writes `count` synthetic frames in H.264, `repeats` times one after another."""
    import av

    from stream_rpn.sources.synthetic import SyntheticVideo

    video = SyntheticVideo(width=size[0], height=size[1], num_frames=count)
    data = io.BytesIO(video.encoded().read())
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as target:
        out = None
        for repeat in range(repeats):
            data.seek(0)
            with av.open(data) as given:
                coded = given.streams.video[0]
                out = out or target.add_stream_from_template(coded)
                for packet in given.demux(coded):
                    if packet.dts is None:
                        continue
                    shift = repeat * coded.duration
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = out
                    target.mux(packet)
    return path


def packed(
    batch: int, rows: int, columns: int, resized: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns data, table and matrix of a batch of random NV12 frames."""
    luma, chroma = rows * columns, rows // 2 * columns
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (batch * (luma + chroma),), dtype=torch.uint8, generator=generator)
    table = [
        PlaneLayout(
            first,
            first + luma,
            first + luma + 1,
            columns,
            columns,
            2,
            1,
            rows,
            columns,
            0,
            *resized,
        )
        for first in range(0, len(data), luma + chroma)
    ]
    matrix = color_matrix("bt709", full_range=False).expand(batch, 3, 4)
    return data.to(device), torch.tensor(table, device=device), matrix.contiguous().to(device)


class _Plane(np.ndarray):
    """Memory that looks like a plane of PyAV's."""

    @property
    def line_size(self) -> int:
        """Bytes from one row to the next."""
        return self.strides[0]


def made_up_frames(count: int, height: int, width: int) -> Iterator[Frame]:
    """Yields NV12 frames that no decoder made: what preprocessing reads of one, and no more."""
    generator = torch.Generator().manual_seed(0)
    planes = [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).numpy().view(_Plane)
        for shape in ((height, width), (height // 2, width))
    ]
    image = SimpleNamespace(
        planes=planes,
        format=SimpleNamespace(name="nv12"),
        sw_format=None,
        height=height,
        width=width,
    )
    color = Color("bt709", full_range=False, tagged=True)
    for index in range(count):
        yield Frame(index, index, index / 25, width, height, 0, color, image)  # type: ignore[arg-type]
