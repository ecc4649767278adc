"""What is shown while sources run: at each width the count and the time left first."""

import io
import itertools
import re
from contextlib import redirect_stderr

import pytest
from rich.cells import cell_len

from stream_rpn.commands import progress
from stream_rpn.commands.progress import Progress, Row, layout, say, under_way
from stream_rpn.commands.summary import describe_all, run_summary
from stream_rpn.frame import StreamInfo
from stream_rpn.sources.select import Selection
from stream_rpn.statistics import StreamStatistics

FILE = Row(
    name="pets09-s2l1-part1-of-the-whole-day",
    frames=234,
    total=1189,
    share=0.2,
    fps=24.5,
    seconds_left=39.2,
    live=False,
    state="queue 4",
    where="h264 (software) → cpu",
)
CAMERA = FILE._replace(
    **{"name": "camera", "frames": 1234, "total": None, "share": None, "seconds_left": None},
    **{"live": True, "state": "12 dropped, age 20/31 ms"},
)


def line(width: int, *rows: Row) -> str:
    return "\n".join(layout(rows or (FILE,), width, 10))


def test_no_line_is_wider_than_the_terminal():
    wide = FILE._replace(name="黒" * 30)
    for width in range(1, 200):
        for rows in ((FILE,), (CAMERA,), (FILE, CAMERA, wide)):
            assert max(map(cell_len, layout(rows, width, 10))) <= width


def test_on_a_narrow_terminal_count_and_time_left_stay():
    assert line(40) == "pets09-s2l1-part1…  234/1,189  0:40 left"
    assert line(60) == "pets09-s2l1-part1-of-t…  234/1,189  24.5 frames/s  0:40 left"
    assert line(80) == (
        "pets09-s2l1-part1-of-…  ━━────────  234/1,189  24.5 frames/s  0:40 left  queue 4"
    )
    assert line(160).startswith(FILE.name)
    assert line(160).endswith("234/1,189  24.5 frames/s  0:40 left  queue 4  h264 (software) → cpu")


def test_of_a_live_source_what_was_lost_stays():
    assert line(70, CAMERA) == "camera  1,234 frames  24.5 frames/s  12 dropped, age 20/31 ms"


def test_columns_are_aligned():
    first, second = line(140, FILE, FILE._replace(name="b", frames=1)).splitlines()
    assert first.index("/1,189") == second.index("/1,189")
    assert first.index("queue") == second.index("queue")


def test_more_rows_than_lines_are_left_out():
    assert len(layout([FILE] * 50, 80, 9)) == 9


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:01 left"), (61, "1:01 left"), (3600.5, "1:00:01 left")]
)
def test_time_left(seconds, text):
    assert text in line(100, FILE._replace(seconds_left=seconds))


def test_names_cannot_move_the_cursor():
    assert "\x1b" not in line(100, FILE._replace(name="a\x1b[2Jb"))


class Running(StreamStatistics):
    def __init__(self, stem: str, done: int) -> None:
        super().__init__(Selection())
        self.info = StreamInfo(stem, stem, 64, 64, fps=10.0, num_frames=100, duration_seconds=10.0)
        self.num_results, self.elapsed_seconds = done, 2.0

    num_chosen = queued = 0


@pytest.fixture(autouse=True)
def _at_a_terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    for name, value in {"COLUMNS": "100", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(screen: io.StringIO) -> list[str]:
    """Returns what stood on the screen last, before it was cleared."""
    text = re.sub(r"\x1b\[\?25[lh]", "", screen.getvalue())
    drawn = [part for part in re.split(r"(?:\r|\x1b\[2K|\x1b\[1A)+", text) if part.strip()]
    return [row.rstrip() for row in drawn[-1].splitlines() if row.strip()]


def test_several_sources_have_a_line_of_all():
    screen = Terminal()
    with redirect_stderr(screen), Progress("cpu", num_sources=4) as display:
        display.ended(Running("a", 100))
        display.show([Running("b", 50)])
    whole, one = shown(screen)
    assert whole.startswith("1 of 4 sources")
    assert "150 frames" in whole
    assert " left" in whole
    assert one.startswith("b ")
    assert "50/100" in one


def test_what_is_being_opened_is_shown():
    screen = Terminal()
    with redirect_stderr(screen), Progress("cpu") as display:
        display.opening("rtsp://camera/1")
    assert shown(screen) == ["opening rtsp://camera/1 …"]
    screen = Terminal()
    with redirect_stderr(screen), Progress("cpu", 3) as display:
        display.opening("a/" * 99)
    whole, one = shown(screen)
    assert whole.startswith("0 of 3 sources")
    assert one.startswith("opening a/a/")
    assert cell_len(one) == 100


def test_elsewhere_a_line_of_each_that_runs(monkeypatch, capsys):
    clock = itertools.count(0.0, 11.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("cpu", num_sources=2) as display:
        display.show([Running("a", 7), Running("b", 8)])
        display.ended(Running("a", 9))
        display.show([Running("b", 10)])
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("a: 0 of 2 sources ended, 7 of 100 frames")
    assert second.startswith("b: 0 of 2 sources ended, 8 of 100 frames")
    assert third.startswith("b: 1 of 2 sources ended, 10 of 100 frames")


def test_what_is_under_way_goes_when_it_is_done_or_something_is_said():
    with redirect_stderr(Terminal()) as screen:
        with under_way("loading nanodet_m"):
            assert screen.getvalue() == "loading nanodet_m …"
            say("a warning")
            assert screen.getvalue().endswith("…\r\x1b[Ka warning\n")
        assert screen.getvalue().endswith("a warning\n")
        with under_way("loading"):
            pass
        assert screen.getvalue().endswith("loading …\r\x1b[K")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_without_a_cursor_gets_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    screen = Terminal()
    with redirect_stderr(screen), under_way("loading"), Progress("cpu") as display:
        display.opening("a")
    assert screen.getvalue() == ""


def test_the_totals_of_many_sources_are_told_in_two_lines():
    one = {
        **{"source": "a", "frames": 2, "frames_in": 3, "held": 0, "drops": {"damaged packet": 1}},
        **{"elapsed_seconds": 0.5, "damaged_packets": 1, "corrupt_frames": 0},
    }
    facts = {"model": "tiny", "dtype": "float32", "device": "cpu"}
    outputs = [f"{number}.jsonl" for number in range(6)]
    summary = run_summary([one] * 5, facts, outputs, [], together=False)
    assert describe_all(summary, 6) == (
        "6 sources: 10 frames, 4.0 frames/s (2.50 s), 1 without results, 5 frames lost; tiny in "
        "float32 on cpu\n  → 0.jsonl, 1.jsonl, 2.jsonl and 3 more"
    )


def test_one_frame_is_told_as_one():
    one = {
        **{"source": "a", "frames": 1, "frames_in": 2, "held": 0, "drops": {"stale": 1}},
        **{"elapsed_seconds": 0.5, "damaged_packets": 0, "corrupt_frames": 0},
    }
    facts = {"model": "tiny", "dtype": "float32", "device": "cpu"}
    summary = run_summary([one], facts, [], [], together=True)
    assert describe_all(summary, 2).startswith(
        "2 sources: 1 frame, 2.0 frames/s (0.50 s), 1 without results, 1 frame lost; "
    )
