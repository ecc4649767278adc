"""A whole measurement: every part alone and all of them together, batch size by batch size."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stream_rpn import api
from stream_rpn.engines import INT8, choose_batch
from stream_rpn.frame import StreamInfo, StreamRPNError
from stream_rpn.measure import peers, stages
from stream_rpn.measure.stages import BatchReport
from stream_rpn.pipeline import Pipeline
from stream_rpn.sources import expand, open_source
from stream_rpn.sources.synthetic import SyntheticVideo


class Bench:
    """One run over all batch sizes, and what it found.

    Args:
        arguments: of `stream-rpn bench`.
        options: keywords of `api.load` among them.
        batches: batch sizes, separated by commas.
        folder: for files that are needed meanwhile.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        options: Mapping[str, Any],
        batches: str,
        folder: Path,
    ) -> None:
        self.arguments = arguments
        self.options = options
        self.path, self.info = _local(arguments.source, folder)
        self.out = folder / "proposals.jsonl"
        self.batches = _batches(batches)
        self.pipeline = self._pipeline(self.batches[0])
        if self.pipeline.engine == "openvino":
            # Which takes frames side by side instead.
            self.batches = [self.pipeline.batch]
        self.reports: list[BatchReport] = []
        self.compared: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def _pipeline(self, batch: int, **changes: str) -> Pipeline:
        given = self.arguments
        asked = {"engine": given.engine, "device": given.device, "dtype": given.dtype, **changes}
        return api.open_pipeline(
            given.model,
            **asked,
            batch=batch,
            threads=given.threads,
            **self.options,
        )

    @property
    def best(self) -> BatchReport:
        """The batch size that gives the most frames a second."""
        return max(self.reports, key=lambda report: report.whole.fps)

    def others(self) -> float:
        """Returns the share of the cores that other processes took, at its worst."""
        shares = [report.whole.usage.others_utilisation or 0.0 for report in self.reports]
        return max(shares, default=0.0)

    def describe(self) -> str:
        """Returns the work that is measured, in one line."""
        info, pipeline = self.info, self.pipeline
        return (
            f"{self.arguments.source}: {info.width}x{info.height} {info.codec}; "
            f"{pipeline.model.name} in {pipeline.dtype} on {pipeline.device} by {pipeline.engine}; "
            f"{self.arguments.seconds:g} s a number"
        )

    def measure(self) -> Iterator[str]:
        """Measures each batch size, then the peers; yields a line of progress for each number.

        Ctrl-C waits for the number that is being measured.
        """
        seconds, decoder = self.arguments.seconds, self.arguments.decoder
        frames = stages.sample(self.path)
        decode = stages.decode_alone(self.path, self.pipeline, seconds, decoder)
        yield f"decode alone: {decode.fps:.1f} frames/s"
        for batch in self.batches:
            if self.reports and self.arguments.batch is None:
                predicted = batch / self.reports[-1].network.fps
                if predicted > seconds:
                    self.left_out.append(
                        f"Batch {batch} is left out, as one would take {predicted:.0f} s; "
                        f"--batch {batch} measures it."
                    )
                    yield self.left_out[-1]
                    continue
            if batch != self.pipeline.batch:
                self.pipeline = self._pipeline(batch)
            unqueued, proposals = stages.network_unqueued(self.pipeline, frames, seconds)
            yield f"batch {batch}, one by one: {unqueued.fps:.1f} frames/s"
            network = stages.network_alone(self.pipeline, frames, seconds)
            yield f"batch {batch}, network alone: {network.fps:.1f} frames/s"
            sink = stages.sink_alone(self.pipeline, self.path, proposals, self.out)
            whole = stages.whole(self.pipeline, self.path, self.out, seconds, decoder)
            self.reports.append(BatchReport(batch, decode, network, unqueued, sink, whole))
            yield f"batch {batch}, the whole: {whole.fps:.1f} frames/s"
        if self.arguments.compare:
            yield from self._compare()

    def _compare(self) -> Iterator[str]:
        given = self.arguments
        if self.best.batch != self.pipeline.batch:
            self.pipeline = self._pipeline(self.best.batch)
        # Measured once more, so that both sides have the machine as it is in the same minute.
        ours = stages.whole(self.pipeline, self.path, self.out, given.seconds, given.decoder)
        self.compared.append({"name": "stream-rpn", "fps": round(ours.fps, 3), "ratio": 1.0})
        by_torch = self.pipeline
        if by_torch.engine != "torch":
            dtype = "float32" if self.pipeline.dtype == INT8 else self.pipeline.dtype
            by_torch = self._pipeline(self.best.batch, engine="torch", dtype=dtype)
        others = peers.peers(by_torch, given.model, given.weights, size=given.size)
        for peer in (*others, *peers.scripts(by_torch)):
            row = peers.measure_peer(peer, self.path, self.out, given.seconds)
            if "fps" in row:
                row["ratio"] = round(ours.fps / row["fps"], 3)
            self.compared.append(row)
            yield f"{row['name']}: {row.get('skipped') or '{:.1f} frames/s'.format(row['fps'])}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything that was found."""
        pipeline = self.pipeline
        return {
            "source": self.arguments.source,
            "width": self.info.width,
            "height": self.info.height,
            "codec": self.info.codec,
            "model": pipeline.model.name,
            "trained": pipeline.model.trained,
            "engine": pipeline.engine,
            "device": pipeline.device,
            "dtype": pipeline.dtype,
            "seconds_per_number": self.arguments.seconds,
            "bottleneck": self.best.bottleneck(),
            "left_out": self.left_out,
            "batches": [report.to_json() for report in self.reports],
            "compared": self.compared,
        }


def _local(source: str, folder: Path) -> tuple[str, StreamInfo]:
    """Returns the file to measure, which a synthetic clip is encoded to first, and what it is."""
    path = source
    if source.startswith("synthetic:"):
        path = str(folder / "clip.mp4")
        with SyntheticVideo.parse(source).encoded() as encoded:
            Path(path).write_bytes(encoded.read())
    elif source == "-":
        raise StreamRPNError("standard input can be read only once; give bench a file")
    else:
        files = expand([source])
        if len(files) > 1:
            raise StreamRPNError(f"{source} holds {len(files)} videos; give bench one of them")
        path = files[0]
    with open_source(path, decoder="cpu") as opened:
        if opened.info.live:
            raise StreamRPNError(f"{source} comes at its own pace; give bench a file")
        return path, opened.info


def _batches(text: str) -> list[int]:
    sizes = [choose_batch(part, "cpu") for part in text.split(",")]
    return list(dict.fromkeys(sizes))
