"""Objects are followed: what the tracker is given, what becomes of its answer, and the real one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import stream_rpn
from stream_rpn.commands.stream import stream_parser
from stream_rpn.drops import Drop, DropReason
from stream_rpn.frame import Proposals, StreamInfo, StreamRPNError
from stream_rpn.sinks import make_header, open_sink
from stream_rpn.tracking import TRACKERS, Tracking, TrackSpec

INFO = StreamInfo(source="a.mp4", stem="a", width=200, height=100, fps=25.0)


def frame_of(index, boxes, scores=None, **more):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    scores = np.full(count, 0.6) if scores is None else scores
    known = {"pts": index, "pts_seconds": index / 25, "width": 200, "height": 100}
    return Proposals(
        frame=index,
        boxes=boxes,
        scores=np.asarray(scores, np.float32),
        levels=np.zeros(count, np.int32),
        anchors=np.arange(count, dtype=np.int32),
        input_boxes=boxes,
        **{**known, **more},
    )


def walk(index, **more):
    """Two objects that go towards each other in rows of their own, a nested box, and a weak one."""
    left, right = 10.0 + 2 * index, 160.0 - 2 * index
    boxes = [
        [left, 10, left + 20, 40],
        [right, 60, right + 20, 90],
        [left + 1, 11, left + 20, 40],
        [90, 0, 110, 20],
    ]
    return frame_of(index, boxes, [0.68, 0.6, 0.55, 0.1], **more)


class OneTrack:
    """A tracker that gives every box its place among those of its frame, in reverse order."""

    def __init__(self, frame_rate, track_activation_threshold):
        self.settings = frame_rate, track_activation_threshold
        self.calls = []

    def update(self, detections, timestamp):
        self.calls.append((detections.xyxy.tolist(), timestamp))
        detections = detections[::-1]
        detections.tracker_id = np.arange(len(detections)) - 1
        return detections


@pytest.fixture
def stand_in(monkeypatch):
    pytest.importorskip("supervision")
    monkeypatch.setattr(TrackSpec, "library_class", lambda spec: OneTrack)


@pytest.mark.usefixtures("stand_in")
class TestWhatTheTrackerIsGiven:
    def test_boxes_that_are_weak_or_nested_are_not_followed(self):
        tracking = Tracking(TrackSpec(), 25.0)
        result = tracking.track(walk(0))
        boxes, _ = tracking._tracker.calls[0]
        assert boxes == walk(0).boxes[:2].tolist()
        # The library counts from 0, and gives -1 to what is not yet a track.
        assert result.track_ids.tolist() == [1, -1, -1, -1]
        assert result.track_ids.dtype == np.int64

    def test_a_frame_without_boxes_has_no_ids(self):
        result = Tracking(TrackSpec(), 25.0).track(frame_of(0, []))
        assert result.track_ids.shape == (0,)

    def test_time_is_that_of_the_frames_so_that_what_was_lost_counts(self):
        tracking = Tracking(TrackSpec(), 25.0)
        lost = (Drop(DropReason.QUEUE_FULL, 4, None),)
        for index, drops in ((0, ()), (5, lost)):
            tracking.track(walk(index, drops=drops))
        assert [time for _, time in tracking._tracker.calls] == [0.0, 0.2]

    def test_times_that_stand_go_on_for_the_tracker_and_none_stay_none(self):
        tracking = Tracking(TrackSpec(), 25.0)
        for index in range(2):
            tracking.track(walk(index, pts_seconds=1.0))
        tracking.track(walk(2, pts_seconds=None))
        first, second, third = (time for _, time in tracking._tracker.calls)
        assert first == 1.0 < second < 1.000001
        assert third is None

    def test_a_held_frame_has_the_ids_of_the_frame_that_it_shows(self):
        tracking = Tracking(TrackSpec(), 25.0)
        looked = tracking.track(walk(0))
        held = tracking.track(walk(0, held=0))
        assert held.track_ids.tolist() == looked.track_ids.tolist()
        assert len(tracking._tracker.calls) == 1

    @pytest.mark.parametrize(("fps", "taken"), [(25.0, 25.0), (None, 30.0), (90000.0, 30.0)])
    def test_a_rate_that_is_none_or_odd_is_the_usual_one(self, fps, taken):
        assert Tracking(TrackSpec(), fps)._tracker.settings == (taken, TrackSpec().start_score)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("realtime", [False, True])
def test_every_source_of_a_run_is_followed_by_itself(monkeypatch, realtime):
    made = []
    init = Tracking.__init__
    monkeypatch.setattr(
        Tracking, "__init__", lambda self, *given: made.append(self) or init(self, *given)
    )
    sources = ["synthetic:64x48@25,3", "synthetic:96x64@25,3"]
    policy = stream_rpn.LivePolicy(realtime=realtime, max_age=60.0)
    results = list(stream_rpn.stream(sources, size=64, track=True, policy=policy))
    assert {p.source_index for p in results} == {0, 1}
    assert all(p.track_ids.shape == (len(p),) for p in results)
    calls = sorted(len(one._tracker.calls) for one in made)
    by_source = sorted(sum(p.source_index == i for p in results) for i in (0, 1))
    assert calls == by_source


class TestWhatIsAskedFor:
    @pytest.mark.parametrize("nothing", [None, False, "off"])
    def test_nothing_is_followed_unless_asked_for(self, nothing):
        assert TrackSpec.parse(nothing) is None

    def test_another_name_is_refused_with_those_that_there_are(self):
        with pytest.raises(StreamRPNError, match=r"no tracker 'deepsort'; known are bytetrack, "):
            TrackSpec.parse("deepsort")

    def test_a_source_after_a_bare_track_is_told_where_it_goes(self, capsys):
        with pytest.raises(SystemExit) as left:
            stream_parser().parse_args(["--track", "a.mp4"])
        assert left.value.code == 2
        assert "a SOURCE goes before a bare --track" in capsys.readouterr().err
        assert stream_parser().parse_args(["a.mp4", "--track"]).track == "bytetrack"

    @pytest.mark.parametrize("library", [None, SimpleNamespace()])
    def test_a_library_that_is_missing_is_named_with_what_installs_it(self, monkeypatch, library):
        monkeypatch.setitem(sys.modules, "trackers", library)
        with pytest.raises(StreamRPNError, match=r"`pip install 'stream-rpn\[track\]'`"):
            TrackSpec.parse(True)


class TestTheLibrary:
    @pytest.mark.parametrize("name", TRACKERS)
    def test_objects_keep_their_ids_over_frames_and_gaps(self, name):
        pytest.importorskip("trackers")
        tracking = Tracking(TrackSpec.parse(name), 25.0)
        ids = [tracking.track(walk(index)).track_ids for index in [*range(12), *range(14, 20)]]
        confirmed = np.array(ids[4:])
        assert (confirmed[:, :2] > 0).all()
        assert (confirmed[:, :2] == confirmed[0, :2]).all()
        assert confirmed[0, 0] != confirmed[0, 1]
        assert (confirmed[:, 2:] == -1).all()

    def test_sources_have_ids_of_their_own(self):
        pytest.importorskip("trackers")
        ids = []
        for _ in range(2):
            tracking = Tracking(TrackSpec.parse(True), 25.0)
            ids.append([tracking.track(walk(index)).track_ids.tolist() for index in range(5)])
        assert ids[0] == ids[1]


def written(tmp_path, name, frames, **parameters):
    path = tmp_path / name
    with open_sink(str(path)) as sink:
        sink.begin(make_header(INFO, model="m", parameters=parameters), INFO)
        for one in frames:
            sink.write(one)
        sink.end({"frames": len(frames)})
    return path


class TestResults:
    FRAMES = (
        frame_of(0, [[1, 2, 30, 40], [5, 6, 70, 80]], track_ids=np.array([7, -1])),
        frame_of(1, [], track_ids=np.empty(0, np.int64)),
        frame_of(2, [[1, 2, 30, 40]], track_ids=np.array([7])),
    )

    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.npz", "a.parquet", "a.csv"])
    def test_ids_are_read_back(self, tmp_path, name):
        if name == "a.parquet":
            pytest.importorskip("pyarrow")
        path = written(tmp_path, name, self.FRAMES, tracking={"tracker": "bytetrack"})
        found = {p.frame: p.track_ids for p in stream_rpn.read(path)}
        expected = {
            p.frame: p.track_ids.tolist() for p in self.FRAMES if len(p) or name[2:] != "csv"
        }
        assert {frame: ids.tolist() for frame, ids in found.items()} == expected
        assert all(ids.dtype == np.int64 for ids in found.values())

    @pytest.mark.parametrize("name", ["a.jsonl", "a.npz", "a.parquet", "a.csv", "a.mot.txt"])
    def test_without_tracking_there_are_none(self, tmp_path, name):
        if name == "a.parquet":
            pytest.importorskip("pyarrow")
        path = written(tmp_path, name, [walk(0)])
        assert [p.track_ids for p in stream_rpn.read(path)] == [None]

    def test_mot_has_the_boxes_of_tracks_alone_with_their_ids(self, tmp_path):
        path = written(tmp_path, "a.mot.txt", self.FRAMES)
        lines = path.read_text().splitlines()
        assert [line.split(",")[:4] for line in lines] == [
            ["1", "7", "2.00", "3.00"],
            ["3", "7", "2.00", "3.00"],
        ]
        assert [p.track_ids.tolist() for p in stream_rpn.read(path)] == [[7], [7]]

    def test_pictures_show_what_is_followed(self):
        gray = np.full((100, 200, 3), 128, np.uint8)
        followed, nothing = self.FRAMES[0], frame_of(0, [])
        alone = followed[:1]
        alone.track_ids = np.array([7])
        assert followed.draw(gray).tobytes() == alone.draw(gray).tobytes()
        alone.track_ids = np.array([8])
        assert followed.draw(gray).tobytes() != alone.draw(gray).tobytes()
        assert followed[1:].draw(gray).tobytes() == nothing.draw(gray).tobytes()

    def test_slices_and_detections_have_their_ids(self):
        pytest.importorskip("supervision")
        assert self.FRAMES[0][1:].track_ids.tolist() == [-1]
        assert self.FRAMES[0].supervision().tracker_id.tolist() == [7, -1]


class TestMeasure:
    def test_a_switch_is_counted_and_costs_identity(self):
        pytest.importorskip("scipy")
        from bench.tracking import score

        box = np.array([[0.0, 0, 10, 10]])
        truth = {frame: (np.array([1]), box) for frame in range(4)}
        same = {frame: (np.array([5]), box) for frame in range(4)}
        switched = {**same, 3: (np.array([6]), box)}
        assert score(truth, same)["IDF1"] == 1.0
        assert score(truth, same)["switches"] == 0
        row = score(truth, switched)
        assert (row["IDF1"], row["switches"], row["MOTA"]) == (0.75, 1, 0.75)
        assert score(truth, {})["IDF1"] == 0.0
