import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

import stream_rpn
from stream_rpn.commands.outputs import OutputInUse, resolve_outputs
from stream_rpn.commands.stream import stream_parser
from stream_rpn.drawing import DrawSpec
from stream_rpn.drops import Drop
from stream_rpn.frame import StreamInfo, StreamRPNError
from stream_rpn.sinks import SINKS, ReaderGone, make_header, open_sink
from stream_rpn.sinks.jsonl import GzipJSONLinesSink
from stream_rpn.sinks.parquet import ParquetSink
from tests.records import BOX, COLOR, INFO, gray_frame, make_proposals

ALL_NAMES = [f"x{ending}" for ending in SINKS if ending not in ("-", "null")]
# Written as `x.coco.json` or `x.jsonl`: what is tried with processes and disks is tried once.
LIKE_OTHERS = ["x.coco-results.json", "x.labelstudio.json", "x.d2.pkl", "x.csv"]
PLACES = [name for name in ALL_NAMES if name not in LIKE_OTHERS]
# A file of these is whole or not there; of the others what was written is.
WHOLE_ONLY = ("x.coco.json", "x.mot.txt", "x.npz", "x.mp4", *LIKE_OTHERS[:-1])


def write_all(name, records, info=INFO, **options):
    with open_sink(str(name), **options) as sink:
        sink.begin(make_header(info, model="tiny"), info)
        for record in records:
            sink.write(record)
        sink.end({"frames": len(records), "elapsed_seconds": 1.5})


def files_of(folder):
    """The lines of the index of a directory that are of files."""
    lines = map(json.loads, (folder / "index.jsonl").read_text().splitlines())
    return [line for line in lines if "file" in line]


def leftovers(folder):
    """Everything under a folder that is hidden, or not meant to be there."""
    return [path.name for path in Path(folder).rglob(".*")]


class TestJSONLines:
    def test_lines_are_as_documented(self, tmp_path):
        path = tmp_path / "x.jsonl"
        first = make_proposals(0, [[1, 2, 3.456, 4.001], BOX], [0.1234567, 1e-7])
        empty = make_proposals(
            1, [], pts=None, pts_seconds=None, drops=(Drop("damaged packet", 2, 512),)
        )
        resized = make_proposals(2, [], width=48, height=32)
        image = make_proposals(3, [], image_id=42, name="a.jpg")
        write_all(path, [first, empty, resized, image])
        header, *frames, end = [json.loads(line) for line in path.read_text().splitlines()]
        assert header["stream_rpn"] == 1
        assert header["source"] == "clips/a.mp4"
        assert (header["width"], header["height"], header["rotation"]) == (96, 64, 0)
        assert header["color"]["matrix"] == "bt709"
        assert header["model"] == "tiny"
        assert header["parameters"] == {}
        assert frames[0] == {
            "frame": 0,
            "pts": 0,
            "pts_seconds": 0.0,
            "boxes": [[1.0, 2.0, 3.46, 4.0], BOX],
            "scores": [0.1234567, 1e-07],
            "levels": [0, 1],
        }
        nothing = {"boxes": [], "scores": [], "levels": []}
        assert frames[1] == {
            "frame": 1,
            "pts": None,
            "pts_seconds": None,
            "drops": [{"reason": "damaged packet", "count": 2, "first_pts": 512}],
            **nothing,
        }
        assert (frames[2]["width"], frames[2]["height"]) == (48, 32)
        assert (frames[3]["image_id"], frames[3]["name"]) == (42, "a.jpg")
        assert end == {"end": {"frames": 4, "elapsed_seconds": 1.5}}

    def test_a_thousand_random_boxes_keep_two_decimals_and_scores_all_digits(self, tmp_path):
        rng = np.random.default_rng(0)
        record = make_proposals(0, rng.random((1000, 4)) * 3840, np.sort(rng.random(1000))[::-1])
        write_all(tmp_path / "x.jsonl", [record])
        line = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[1])
        # Half of the last place, and of what float32 tells apart at 3840.
        assert np.abs(np.array(line["boxes"]) - record.boxes).max() <= 0.005 + 2**-12
        assert np.array_equal(np.float32(line["scores"]), record.scores)
        assert line["levels"] == record.levels.tolist()

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (0, "0.0"),
            (0.004, "0.0"),
            (0.006, "0.01"),
            (9.996, "10.0"),
            (99.99, "99.99"),
            (1000, "1000.0"),
            (65535.5, "65535.5"),
            (99998.99, "99998.99"),
            (123456, "123456.0"),
            (-1.5, "-1.5"),
        ],
    )
    def test_every_size_of_number(self, tmp_path, number, text):
        write_all(tmp_path / "x.jsonl", [make_proposals(0, [[0, 12.5, number, 7]] * 2)])
        line = (tmp_path / "x.jsonl").read_text().splitlines()[1]
        assert f'"boxes":[[0.0,12.5,{text},7.0],[0.0,12.5,{text},7.0]],' in line

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
    def test_refuses_what_json_cannot_say(self, tmp_path, bad):
        with pytest.raises(ValueError, match="finite"):
            write_all(tmp_path / "x.jsonl", [make_proposals(0, [[0, 0, bad, 1]])])

    def test_header_of_odd_values_is_valid_json(self):
        parameters = {"t": float("-inf"), "sizes": (np.float32(1.5), 2), "path": Path("w.pth")}
        header = make_header(INFO, model="tiny", parameters=parameters)
        text = json.dumps(header, allow_nan=False)
        assert json.loads(text)["parameters"] == {"t": None, "sizes": [1.5, 2], "path": "w.pth"}

    def test_every_line_is_in_the_file_at_once(self, tmp_path):
        path = tmp_path / "x.jsonl"
        sink = open_sink(str(path))
        sink.begin(make_header(INFO, model="tiny"), INFO)
        for index in range(3):
            sink.write(make_proposals(index))
            assert path.read_bytes().count(b"\n") == 2 + index
        sink.abort()
        assert path.read_bytes().endswith(b"]}\n")

    def test_standard_output(self, capfdbinary):
        write_all("-", [make_proposals(0), make_proposals(1)])
        lines = capfdbinary.readouterr().out.splitlines()
        assert [next(iter(json.loads(line))) for line in lines] == [
            "stream_rpn",
            "frame",
            "frame",
            "end",
        ]

    def test_a_reader_that_goes_is_told_from_an_error(self, tmp_path):
        fifo = tmp_path / "x.jsonl"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        sink = open_sink(str(fifo))
        sink.begin(make_header(INFO, model="tiny"), INFO)
        os.close(reader)
        with pytest.raises(ReaderGone):
            sink.write(make_proposals(0))
        sink.abort()


class TestOtherData:
    def test_mot_counts_frames_and_pixels_from_one(self, tmp_path):
        write_all(tmp_path / "x.mot.txt", [make_proposals(0, [[0, 0, 10, 20.5]], [0.5])])
        assert (tmp_path / "x.mot.txt").read_text() == "1,-1,1.00,1.00,10.00,20.50,0.5,1,1\n"

    def test_coco_results_use_image_ids_or_else_frames(self, tmp_path):
        records = [make_proposals(0, []), make_proposals(1), make_proposals(2, image_id=77)]
        write_all(tmp_path / "x.coco-results.json", records)
        results = json.loads((tmp_path / "x.coco-results.json").read_text())
        assert [item["image_id"] for item in results] == [1, 77]
        assert results[0] == {
            "image_id": 1,
            "category_id": 1,
            "bbox": [20.0, 16.0, 40.0, 32.0],
            "score": 0.9,
        }

    def test_coco_results_without_boxes_are_an_empty_array(self, tmp_path):
        write_all(tmp_path / "x.coco-results.json", [make_proposals(0, [])])
        assert json.loads((tmp_path / "x.coco-results.json").read_text()) == []

    def test_coco_is_a_dataset_of_all_pictures(self, tmp_path):
        records = [
            make_proposals(0, [], name="100%.jpg", pts=None, pts_seconds=None),
            make_proposals(
                1,
                [BOX, [1, 2, 3.5, 4.25]],
                image_id=77,
                name="b/c.jpg",
                pts=None,
                pts_seconds=None,
            ),
            make_proposals(2, drops=(Drop("stale", 1, None),)),
        ]
        write_all(tmp_path / "x.coco.json", records)
        data = json.loads((tmp_path / "x.coco.json").read_text())
        size = {"width": 96, "height": 64}
        assert data["images"] == [
            {"id": 0, "file_name": "100%.jpg", **size},
            {"id": 77, "file_name": "b/c.jpg", **size, "frame": 1},
            {
                "id": 2,
                "file_name": "frame_000002.jpg",
                **size,
                "pts": 1024,
                "pts_seconds": 0.08,
                "drops": [{"reason": "stale", "count": 1, "first_pts": None}],
            },
        ]
        assert data["categories"] == [{"id": 1, "name": "object", "supercategory": ""}]
        assert data["annotations"][1] == {
            "id": 2,
            "image_id": 77,
            "category_id": 1,
            "bbox": [1.0, 2.0, 2.5, 2.25],
            "area": 5.62,
            "iscrowd": 0,
            "segmentation": [],
            "score": 0.1,
        }
        assert [item["id"] for item in data["annotations"]] == [1, 2, 3]
        assert data["info"]["stream_rpn"]["end"] == {"frames": 3, "elapsed_seconds": 1.5}

    def test_npz_opens_without_pickle(self, tmp_path):
        records = [make_proposals(0, [BOX, BOX]), make_proposals(1, []), make_proposals(2)]
        write_all(tmp_path / "x.npz", records)
        with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
            assert archive["offsets"].tolist() == [0, 2, 2, 3]
            assert archive["boxes"].shape == (3, 4)
            assert archive["boxes"].dtype == np.float32
            assert archive["frame"].tolist() == [0, 1, 2]
            assert json.loads(str(archive["about"]))["header"]["model"] == "tiny"

    def test_parquet_directory_is_read_by_arrow(self, tmp_path, monkeypatch):
        dataset = pytest.importorskip("pyarrow.dataset")
        monkeypatch.setattr(ParquetSink, "PART_FRAMES", 2)
        records = [make_proposals(0, [BOX, BOX]), make_proposals(1, []), make_proposals(2)]
        write_all(tmp_path / "x.parquet", records)
        assert sorted(path.name for path in (tmp_path / "x.parquet").iterdir()) == [
            f"part-0000{number}.parquet"
            for number in range(3)  # the first has no rows
        ]
        rows = dataset.dataset(tmp_path / "x.parquet").to_table().to_pylist()
        assert [row["frame"] for row in rows] == [0, 1, 2]
        assert rows[0]["boxes"] == [BOX, BOX]
        assert rows[1]["boxes"] == []
        assert {row["source"] for row in rows} == {"clips/a.mp4"}

    def test_csv_has_a_row_a_box(self, tmp_path):
        records = [
            make_proposals(0, [BOX, [1, 2, 3.456, 4]], [0.5, 0.25], name="a, 100%.jpg"),
            make_proposals(1, []),
            make_proposals(2, pts_seconds=None),
        ]
        write_all(tmp_path / "x.csv", records)
        with open(tmp_path / "x.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[1] == {
            "source": "clips/a.mp4",
            "frame": "0",
            "pts_seconds": "0",
            "name": "a, 100%.jpg",
            "x1": "1.00",
            "y1": "2.00",
            "x2": "3.46",
            "y2": "4.00",
            "score": "0.25",
            "level": "1",
        }
        assert [(row["frame"], row["pts_seconds"]) for row in rows[1:]] == [("0", "0"), ("2", "")]

    def test_detectron2_proposals_are_plain_arrays(self, tmp_path):
        write_all(tmp_path / "x.d2.pkl", [make_proposals(0, image_id=77), make_proposals(1, [])])
        data = pickle.loads((tmp_path / "x.d2.pkl").read_bytes())
        assert data.keys() == {"ids", "boxes", "objectness_logits", "bbox_mode"}
        assert (data["ids"], data["bbox_mode"]) == ([77, 1], 0)
        assert data["boxes"][0].tolist() == [BOX]
        assert [boxes.shape for boxes in data["boxes"]] == [(1, 4), (0, 4)]
        assert data["boxes"][0].dtype == data["objectness_logits"][0].dtype == np.float32
        assert 1 / (1 + np.exp(-data["objectness_logits"][0])) == pytest.approx([0.9])

    def test_summaries_name_an_output_as_the_user_did(self, tmp_path):
        for name in (f"yolo:{tmp_path}/labels/", f"{tmp_path}/x.npz"):
            (output,) = resolve_outputs([name], ["clips/a.mp4"])
            used = OutputInUse(output, pytest.fail)
            used.begin(make_header(INFO), INFO, dict)
            used.write(make_proposals(0))
            used.end(INFO.source, {})
            assert used.shown == name
            used.close()
            assert used.shown == name

    def test_label_studio_gets_a_task_a_picture(self, tmp_path):
        records = [make_proposals(0, name="100% a.jpg"), make_proposals(1, [])]
        write_all(tmp_path / "x.labelstudio.json", records)
        first, second = json.loads((tmp_path / "x.labelstudio.json").read_text())
        assert first["data"] == {"image": "/data/local-files/?d=a/100%25%20a.jpg"}
        assert second["data"] == {"image": "/data/local-files/?d=a/frame_000001.jpg"}
        (region,) = first["predictions"][0]["result"]
        assert (region["original_width"], region["original_height"]) == (96, 64)
        assert region["value"] == {
            "x": 20.8333,
            "y": 25.0,
            "width": 41.6667,
            "height": 50.0,
            "rotation": 0,
            "rectanglelabels": ["object"],
        }
        assert second["predictions"][0]["result"] == []

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("x.csv", b"a\\udce9.png"),
            ("x.parquet", b"a\\udce9.png"),
            ("x.labelstudio.json", b"a%E9.png"),
            ("x.jsonl", b"a\\udce9.png"),
        ],
    )
    def test_names_that_are_no_text_are_written_as_far_as_they_can_be(self, tmp_path, name, text):
        write_all(tmp_path / name, [make_proposals(0, name="a\udce9.png")])
        if name == "x.parquet":
            (row,) = stream_rpn.read(tmp_path / name)
            assert row.name.encode() == text
        else:
            assert text in (tmp_path / name).read_bytes()

    def test_several_sources_share_lines_and_rows(self, tmp_path):
        for name in ("x.jsonl", "x.parquet"):
            with open_sink(str(tmp_path / name), multiple_sources=True) as sink:
                for source in ("a.mp4", "b.mp4"):
                    info = StreamInfo(source, source[0], 96, 64)
                    sink.begin(make_header(info, model="tiny"), info)
                    sink.write(make_proposals(0))
                    sink.end({"frames": 1})
            results = stream_rpn.read(tmp_path / name)
            assert [proposals.source for proposals in results] == ["a.mp4", "b.mp4"]
            assert results.complete
            assert results.sources == ["a.mp4", "b.mp4"]
        lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
        assert [line["source"] for line in lines] == ["a.mp4"] * 3 + ["b.mp4"] * 3


class TestFoldersOfPictures:
    def test_yolo_labels_lie_by_the_name_of_their_picture(self, tmp_path):
        records = [
            make_proposals(0, [BOX, [-5, 0, 200, 64]], name="a.jpg"),
            make_proposals(1, [], name="sub/b.png"),
            make_proposals(12),
        ]
        write_all(f"yolo:{tmp_path}/x/", records)
        labels = tmp_path / "x" / "labels"
        assert (labels / "a.txt").read_text() == (
            "0 0.416667 0.500000 0.416667 0.500000\n0 0.500000 0.500000 1.000000 1.000000\n"
        )
        assert (labels / "sub" / "b.txt").read_text() == ""
        assert (labels / "frame_000012.txt").is_file()
        assert "0: object" in (tmp_path / "x" / "data.yaml").read_text()
        assert [line["file"] for line in files_of(tmp_path / "x")] == [
            "data.yaml",
            "labels/a.txt",
            "labels/sub/b.txt",
            "labels/frame_000012.txt",
        ]

    def test_yolo_labels_of_one_name_are_refused(self, tmp_path):
        records = [make_proposals(i, name=name) for i, name in enumerate(("a.jpg", "a.png"))]
        with pytest.raises(StreamRPNError, match=r"'a\.png' and of 'a\.jpg' would have one name"):
            write_all(f"yolo:{tmp_path}/x/", records)

    def test_annotated_pictures_show_the_boxes(self, tmp_path):
        odd = make_proposals(1, [], name="b.png", width=95, height=63)
        odd.image = gray_frame(96, 64)
        records = [make_proposals(0, scores=[1.0], name="sub/a.jpg"), odd, make_proposals(2)]
        write_all(f"annotated:{tmp_path}/x/", records)
        names = [line["file"] for line in files_of(tmp_path / "x")]
        assert names == ["sub/a.jpg", "b.png.jpg", "frame_000002.jpg"]
        pictures = []
        for name in names:
            with av.open(str(tmp_path / "x" / name)) as container:
                pictures.append(next(container.decode(video=0)).to_ndarray(format="rgb24"))
        assert [picture.shape for picture in pictures] == [(64, 96, 3), (63, 95, 3), (64, 96, 3)]
        redness = pictures[0][..., 0].astype(int) - pictures[0][..., 1]
        assert redness[30:34, 20].min() > 100
        assert abs(redness[24:40, 30:50]).max() < 30

    @pytest.mark.parametrize("prefix", ["yolo:", "annotated:"])
    def test_are_replaced_and_told_of_as_all_directories(self, tmp_path, prefix):
        name = f"{prefix}{tmp_path}/x"
        for sources in (["a.mp4", "b.mp4"], ["c.mp4"]):
            (output,) = resolve_outputs([name], sources, overwrite=True)
            with output.open() as sink:
                for source in sources:
                    info = StreamInfo(source, source[0], 96, 64, color=COLOR)
                    sink.begin(make_header(info), info)
                    sink.write(make_proposals(0, source=source))
                    sink.end({"frames": 1})
            files = [path for path in (tmp_path / "x").rglob("*.*") if path.name != "index.jsonl"]
            told = [line["file"] for line in files_of(tmp_path / "x")]
            assert sorted(str(path.relative_to(tmp_path / "x")) for path in files) == sorted(told)
            assert sum("frame" in file for file in told) == len(sources)
        with pytest.raises(StreamRPNError, match="not empty; --overwrite"):
            resolve_outputs([name], ["c.mp4"])
        with pytest.raises(StreamRPNError, match="are the same"):
            resolve_outputs([name, f"{tmp_path}/x/"], ["c.mp4"], overwrite=True)
        assert leftovers(tmp_path) == []


class TestVideo:
    @pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
    def test_frames_times_and_tags(self, tmp_path, name):
        seconds = [3.0, 3.033, 3.073, 3.193, 3.7]
        records = [make_proposals(i, pts_seconds=s) for i, s in enumerate(seconds)]
        write_all(tmp_path / name, records)
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            context = stream.codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert (context.colorspace, context.color_range) == (1, 1)
        times = [float(frame.time) for frame in frames]
        np.testing.assert_allclose(times, np.array(seconds) - 3.0, atol=6e-4)

    def test_mp4_has_its_index_in_front(self, tmp_path):
        write_all(tmp_path / "x.mp4", [make_proposals(0)])
        data = (tmp_path / "x.mp4").read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")

    def test_boxes_lie_at_their_pixels_and_the_rest_is_untouched(self, tmp_path):
        write_all(tmp_path / "x.mp4", [make_proposals(0, scores=[1.0])])
        with av.open(str(tmp_path / "x.mp4")) as container:
            rgb = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        redness = rgb[..., 0] - rgb[..., 1]
        x1, y1, x2, y2 = map(int, BOX)
        for row, column in ((32, x1), (32, x2 - 2), (y1, 50), (y2 - 2, 40)):
            assert redness[row : row + 2, column : column + 2].min() > 100
        assert abs(redness[y1 + 6 : y2 - 6, x1 + 6 : x2 - 6]).max() < 30
        assert abs(redness[y2 + 6 :]).max() < 30

    def test_only_the_best_are_drawn(self, tmp_path):
        far = [[70, 40, 90, 60]]
        for draw, drawn in ((1, False), (2, True)):
            proposals = make_proposals(0, [BOX, *far], scores=[0.9, 0.5])
            write_all(tmp_path / f"{draw}.mp4", [proposals], draw=DrawSpec(top=draw))
            with av.open(str(tmp_path / f"{draw}.mp4")) as container:
                luma = next(container.decode(video=0)).to_ndarray()[:64]
            assert (np.ptp(luma[38:62, 68:92]) > 60) == drawn

    def test_times_that_repeat_or_lack_still_increase(self, tmp_path):
        seconds = [0.0, 0.04, 0.04, 0.02, None, 0.2]
        write_all(
            tmp_path / "x.mp4", [make_proposals(i, pts_seconds=s) for i, s in enumerate(seconds)]
        )
        with av.open(str(tmp_path / "x.mp4")) as container:
            pts = [frame.pts for frame in container.decode(video=0)]
        assert len(pts) == 6
        assert all(np.diff(pts) > 0)

    @pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
    def test_a_clock_that_jumps_by_days_goes_on_within_the_hour(self, tmp_path, name):
        seconds = [0.0, 0.1, 1e6, 1e6 + 0.1]
        records = [make_proposals(i, pts_seconds=s) for i, s in enumerate(seconds)]
        write_all(tmp_path / name, records)
        with av.open(str(tmp_path / name)) as container:
            times = [float(frame.time) for frame in container.decode(video=0)]
        assert np.diff(times) == pytest.approx([0.1, 2**28 / 90_000, 0.1], abs=2e-3)

    def test_images_without_times_play_at_the_declared_rate(self, tmp_path):
        records = [make_proposals(i, pts=None, pts_seconds=None) for i in range(3)]
        write_all(tmp_path / "x.mp4", records)
        with av.open(str(tmp_path / "x.mp4")) as container:
            assert [float(f.time) for f in container.decode(video=0)] == [0, 0.04, 0.08]

    def test_images_without_times_play_at_a_rate_of_choice(self, tmp_path):
        info = StreamInfo("few", "few", 96, 64, color=COLOR)
        (output,) = resolve_outputs([f"{tmp_path}/x.mp4"], ["few"], draw_fps=2.0)
        with output.open() as sink:
            sink.begin(make_header(info), info)
            for index in range(3):
                sink.write(make_proposals(index, pts=None, pts_seconds=None))
        with av.open(str(tmp_path / "x.mp4")) as container:
            assert [float(f.time) for f in container.decode(video=0)] == [0, 0.5, 1]

    def test_a_picture_too_long_for_h264_is_said_in_a_sentence(self, tmp_path):
        wide = make_proposals(0, [], width=16_386, height=32)
        wide.image = gray_frame(16_386, 32)
        with pytest.raises(StreamRPNError, match=r"16386x32, and no side .* 16,384 in H\.264"):
            write_all(tmp_path / "x.mp4", [wide])

    def test_a_later_size_is_letterboxed_into_the_first(self, tmp_path):
        tall = make_proposals(1, [[0, 0, 32, 64]], [1.0], width=32, height=64)
        tall.image = gray_frame(32, 64, luma=200)
        write_all(tmp_path / "x.mp4", [make_proposals(0, []), tall])
        with av.open(str(tmp_path / "x.mp4")) as container:
            first, second = [
                frame.to_ndarray()[:64].astype(int) for frame in container.decode(video=0)
            ]
        assert first.shape == second.shape == (64, 96)
        assert second[30, [5, 25, 70, 90]].max() < 40  # bars
        assert second[30, 40:56].min() > 170  # the frame, 32 pixels wide in the middle
        assert abs(second[40, 32:34] - 200).min() > 40  # the box follows

    def test_rotated_frames_stand_upright(self, tmp_path):
        planes = gray_frame(96, 64).to_ndarray()
        planes[:64, :48] = 220  # the left half, which clockwise by 90 degrees becomes the upper one
        rotated = make_proposals(0, [], width=64, height=96, rotation=90)
        rotated.image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        write_all(tmp_path / "x.mp4", [rotated])
        with av.open(str(tmp_path / "x.mp4")) as container:
            frame = next(container.decode(video=0)).to_ndarray()[:96]
        assert frame.shape == (96, 64)
        assert frame[:40].min() > 200
        assert frame[56:].max() < 140

    @pytest.mark.parametrize("pixel_format", ["yuv420p", "nv12", "yuv420p10le"])
    def test_odd_sizes_become_even(self, tmp_path, pixel_format):
        image = av.VideoFrame(95, 63, "rgb24")
        for plane in image.planes:
            plane.update(b"\x80" * plane.buffer_size)
        record = make_proposals(0, [], width=95, height=63)
        record.image = image.reformat(format=pixel_format)
        write_all(tmp_path / "x.mp4", [record])
        with av.open(str(tmp_path / "x.mp4")) as container:
            frame = next(container.decode(video=0))
        luma = frame.to_ndarray()[:64]
        assert (frame.width, frame.height) == (96, 64)
        assert np.ptp(luma) < 8

    def test_without_any_frame_nothing_appears(self, tmp_path):
        with pytest.raises(StreamRPNError, match="no frame"):
            write_all(tmp_path / "x.mp4", [])
        assert list(tmp_path.iterdir()) == []


class TestCrops:
    def test_files_and_index(self, tmp_path):
        planes = gray_frame().to_ndarray()
        planes[16:48, 20:60] = 235
        boxes = [BOX, [90.5, 60, 120, 80], [3, 3, 3, 3]]
        record = make_proposals(7, boxes)
        record.image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        write_all(f"{tmp_path}/crops/", [record, make_proposals(8, [])], crops=3)
        folder = tmp_path / "crops"
        index = files_of(folder)
        assert [item["file"] for item in index] == [f"00000007_00{rank}.jpg" for rank in range(3)]
        assert index[0]["box"] == BOX
        sizes = []
        for item in index:
            with av.open(str(folder / item["file"])) as container:
                frame = next(container.decode(video=0))
            sizes.append((frame.width, frame.height))
        assert sizes == [(40, 32), (6, 4), (1, 1)]
        with av.open(str(folder / "00000007_000.jpg")) as container:
            assert next(container.decode(video=0)).to_ndarray(format="gray").min() > 240

    def test_several_sources_of_one_name_have_folders_of_their_own(self, tmp_path):
        with open_sink(f"{tmp_path}/crops/", multiple_sources=True) as sink:
            for source in ("a/v.mp4", "b/v.mp4"):
                info = StreamInfo(source, "v", 96, 64, color=COLOR)
                sink.begin(make_header(info, model="tiny"), info)
                sink.write(make_proposals(0))
                sink.end({})
        files = [line["file"] for line in files_of(tmp_path / "crops")]
        assert len(set(files)) == 2
        assert all((tmp_path / "crops" / file).is_file() for file in files)

    def test_overwriting_removes_earlier_crops_and_nothing_else(self, tmp_path):
        write_all(f"{tmp_path}/crops/", [make_proposals(1)])
        (tmp_path / "crops" / "mine.txt").write_text("kept")
        write_all(f"{tmp_path}/crops/", [make_proposals(2)], overwrite=True)
        names = sorted(path.name for path in (tmp_path / "crops").iterdir())
        assert names == ["00000002_000.jpg", "index.jsonl", "mine.txt"]


def write_until_something_fails(name, **options):
    with open_sink(str(name), **options) as sink:
        sink.begin(make_header(INFO, model="tiny"), INFO)
        sink.write(make_proposals(0))
        raise RuntimeError


class TestPlaces:
    @pytest.mark.parametrize("name", ALL_NAMES)
    def test_what_exists_needs_overwrite(self, tmp_path, name):
        target = f"{tmp_path}/{name}"
        write_all(target, [make_proposals(0)])
        with pytest.raises(StreamRPNError, match="--overwrite"):
            open_sink(target)
        with pytest.raises(StreamRPNError, match="--overwrite"):
            resolve_outputs([target], ["v.mp4"])
        write_all(target, [make_proposals(0), make_proposals(1)], overwrite=True)
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("name", ALL_NAMES)
    def test_aborting_leaves_no_junk(self, tmp_path, name):
        with pytest.raises(RuntimeError):
            write_until_something_fails(f"{tmp_path}/{name}")
        assert leftovers(tmp_path) == []
        assert (tmp_path / name).exists() != (name in WHOLE_ONLY)

    def test_aborting_keeps_what_was_to_be_replaced(self, tmp_path):
        path = tmp_path / "x.mot.txt"
        path.write_text("earlier")
        with pytest.raises(RuntimeError):
            write_until_something_fails(path, overwrite=True)
        assert path.read_text() == "earlier"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("x.json", r"did you mean 'x\.coco\.json' or 'x\.coco-results\.json'"),
            ("x.jsnol", r"did you mean 'x\.jsonl'"),
            ("x.parqet", r"did you mean 'x\.parquet'"),
            ("x.xyz", r"unknown extension; known are \.jsonl"),
            ("new", "did you mean 'new/'"),
            ("yolo:", "names no directory; name one, as in 'yolo:DIR/'"),
            ("", "unknown extension; known"),
            ("missing/x.jsonl", "does not exist"),
            ("folder", "did you mean 'folder/'"),
            ("file", "unknown extension; known"),
            ("/dev/null", "did you mean 'null'"),
            ("/dev/stdout", "did you mean '-'"),
            ("/dev/full", "unknown extension; known"),
            ("folder.jsonl", "is a directory"),
            ("file.txt/", "cannot write"),
        ],
    )
    def test_impossible_places_get_a_sentence(self, tmp_path, monkeypatch, name, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "file.txt").write_text("")
        (tmp_path / "file").touch()
        with pytest.raises(StreamRPNError, match=words):
            resolve_outputs([name], ["v.mp4"])

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path):
        (tmp_path / "folder").mkdir(mode=0o500)
        with pytest.raises(StreamRPNError, match="no permission"):
            resolve_outputs([f"{tmp_path}/folder/x.jsonl"], ["v.mp4"])

    def test_longest_ending_decides(self, tmp_path):
        (output,) = resolve_outputs([f"{tmp_path}/x.JSONL.GZ"], ["v.mp4"])
        assert type(output.open()) is GzipJSONLinesSink
        (output,) = resolve_outputs([f"{tmp_path}/x.parquet/"], ["v.mp4"])
        assert type(output.open()) is ParquetSink

    def test_output_must_not_be_a_source(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        video = tmp_path / "v.mp4"
        video.write_bytes(b"video")
        (tmp_path / "link.mp4").symlink_to(video)
        os.link(video, tmp_path / "hard.mp4")
        for output, source in [
            ("v.mp4", "v.mp4"),
            ("./v.mp4", str(video)),
            ("link.mp4", "v.mp4"),
            ("hard.mp4", "v.mp4"),
            ("v.mp4", "*.mp4"),
            ("v.mp4", str(tmp_path)),
            ("v.mp4", f"file://{video}"),
        ]:
            with pytest.raises(StreamRPNError, match="is also a source"):
                resolve_outputs([output], [source], overwrite=True)
        assert video.read_bytes() == b"video"
        (tmp_path / "x.jsonl").touch()  # results beside images that are a source
        resolve_outputs(["x.jsonl"], [str(tmp_path)], overwrite=True)

    def test_outputs_must_differ(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(StreamRPNError, match="given twice"):
            resolve_outputs(["-", "-"], ["v.mp4"])
        with pytest.raises(StreamRPNError, match="are the same"):
            resolve_outputs(["x.jsonl", "./x.jsonl"], ["v.mp4"])
        assert len(resolve_outputs(["null", "null", "-", "x.jsonl"], ["v.mp4"])) == 4

    def test_default_is_named_after_the_source(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        outputs = resolve_outputs([], ["/clips/a.mp4", "b.mp4"])
        assert [output.name for output in outputs] == ["a.proposals.jsonl", "b.proposals.jsonl"]
        assert [output.sources for output in outputs] == [(0,), (1,)]

    def test_equal_stems_are_made_unique(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        sources = ["x/a.mp4", "y/a.mp4", "a-2.mp4", "z/a.mp4"]
        names = [output.name for output in resolve_outputs(["{stem}.npz"], sources)]
        assert names == ["a.npz", "a-3.npz", "a-2.npz", "a-4.npz"]

    @pytest.mark.parametrize("name", ["x.coco.json", "x.d2.pkl", "x.npz", "x.mp4", "x.mkv"])
    def test_formats_of_one_source_refuse_several(self, tmp_path, name):
        with pytest.raises(StreamRPNError, match=r"\{stem\}"):
            resolve_outputs([f"{tmp_path}/{name}"], ["a.mp4", "b.mp4"])

    @pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.parquet", "x/"])
    def test_formats_of_several_sources_take_all(self, tmp_path, name):
        (output,) = resolve_outputs([f"{tmp_path}/{name}"], ["a.mp4", "b.mp4"])
        assert output.sources == (0, 1)
        assert output.options.multiple_sources

    @pytest.mark.parametrize("name", ["x.mot.txt", "x.npz", "x.mp4"])
    def test_devices_are_never_renamed_over(self, tmp_path, name):
        (tmp_path / name).symlink_to("/dev/null")
        with pytest.raises(StreamRPNError, match="not a regular file"):
            open_sink(str(tmp_path / name), overwrite=True)


WRITER = """
import sys
sys.path[:0] = [{tests!r}]
from test_sinks import INFO, make_header, make_proposals, open_sink
from stream_rpn.sinks.parquet import ParquetSink
ParquetSink.PART_FRAMES = 50
sink = open_sink(sys.argv[1])
sink.begin(make_header(INFO, model="tiny"), INFO)
for index in range(200):
    sink.write(make_proposals(index))
print("written", flush=True)
import time
time.sleep(60)
"""


@pytest.mark.parametrize("name", PLACES)
def test_killed_in_the_middle(tmp_path, name):
    command = [sys.executable, "-c", WRITER.format(tests=str(Path(__file__).parent))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [*command, f"{tmp_path}/{name}"], stdout=subprocess.PIPE, env=environment
    ) as writer:
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    path = tmp_path / name
    if name in WHOLE_ONLY:
        assert not path.exists()
    elif name == "x.mkv":
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray()[32, 20] for frame in container.decode(video=0)]
        assert len(frames) > 100
    elif name == "x/":
        assert len(files_of(path)) == 200
        assert len(list(path.glob("*.jpg"))) == 200
    else:
        results = stream_rpn.read(path)
        frames = [proposals.frame for proposals in results]
        assert frames == list(range(len(frames)))
        assert len(frames) >= {"x.jsonl": 200, "x.jsonl.gz": 128, "x.parquet": 200}[name]
        assert not results.complete


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of one megabyte."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", PLACES)
def test_full_disk(small_disk, monkeypatch, name):
    monkeypatch.setattr(ParquetSink, "PART_FRAMES", 20)
    for path in small_disk.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (96, 96), dtype=np.uint8)
    path = small_disk / name
    sink = open_sink(f"{small_disk}/{name}", crops=1000)
    sink.begin(make_header(INFO, model="tiny"), INFO)
    with pytest.raises(StreamRPNError, match=r"cannot write '.*': the disk is full"):  # noqa: PT012
        for index in range(2000):
            boxes = np.sort(rng.random((300, 4)).astype(np.float32) * 64, axis=1)
            record = make_proposals(index, boxes)
            record.image = av.VideoFrame.from_ndarray(np.roll(noise, index), format="yuv420p")
            sink.write(record)
    sink.abort()
    assert leftovers(small_disk) == []
    if name in ("x.jsonl", "x.jsonl.gz", "x.parquet"):
        frames = [proposals.frame for proposals in stream_rpn.read(path)]
        assert len(frames) > 20
        assert frames == list(range(len(frames)))
    elif name == "x.mkv":
        with av.open(str(path)) as container:
            assert next(container.decode(video=0)).width == 96
    elif name == "x/":
        assert len(list(path.glob("*.jpg"))) >= 20
    else:
        assert not path.exists()


@pytest.mark.parametrize("name", PLACES)
def test_disk_full_from_the_start(small_disk, name):
    for path in small_disk.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 2**21)
    with pytest.raises(StreamRPNError, match=r"cannot write '.*': the disk is full"):
        write_all(f"{small_disk}/{name}", [make_proposals(index) for index in range(300)])
    assert leftovers(small_disk) == []


def test_lines_to_a_full_device(tmp_path):
    (tmp_path / "x.jsonl").symlink_to("/dev/full")
    with pytest.raises(StreamRPNError, match="the disk is full"):
        write_all(tmp_path / "x.jsonl", [make_proposals(0)])


@pytest.mark.parametrize("place", ["--help", "docs/outputs.md"])
def test_every_ending_is_told(place):
    text = Path(__file__).parents[1] / "docs" / "outputs.md"
    told = stream_parser().format_help() if place == "--help" else text.read_text()
    known = {word.strip("`,|") for word in told.split()}
    assert {ending for ending in SINKS if ending.startswith(".")} <= known


def test_images_are_kept_only_for_pictures(tmp_path):
    needing = [
        name for name in ALL_NAMES if resolve_outputs([f"{tmp_path}/{name}"], ["v"])[0].needs_image
    ]
    assert needing == ["x.mp4", "x.mkv", "x/"]


def test_a_thousand_boxes_a_frame_cost_little(tmp_path):
    rng = np.random.default_rng(0)
    record = make_proposals(0, rng.random((1000, 4)) * 1920, np.sort(rng.random(1000))[::-1])
    with open_sink(str(tmp_path / "x.jsonl")) as sink:
        sink.begin(make_header(INFO, model="tiny"), INFO)
        times = []
        for _ in range(30):
            began = time.perf_counter()
            sink.write(record)
            times.append(time.perf_counter() - began)
    # 0.3 ms where it was written; the bound only tells a change of algorithm.
    assert min(times) < 5e-3
