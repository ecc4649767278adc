"""What must not be imported: results are read, and commands are refused, without the heavy ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream_rpn.frame import Proposals, StreamInfo
from stream_rpn.sinks import READABLE, make_header, open_sink

COMMANDS = Path(__file__).resolve().parents[1] / "stream_rpn" / "commands"


def heavy_after(code: str) -> str:
    """Returns which of torch and PyAV a program has imported at its end."""
    code += "\nimport sys\nprint([name for name in ('torch', 'av') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("ending", READABLE)
def test_results_are_read_without_torch_and_pyav(tmp_path, ending):
    name = f"a{ending}"
    info = StreamInfo(source="a.mp4", stem="a", width=64, height=48)
    ones = np.ones(1, np.int32)
    box = np.array([[1, 2, 3, 4]], np.float32)
    with open_sink(str(tmp_path / name)) as sink:
        sink.begin(make_header(info, model="m"), info)
        sink.write(Proposals(0, 0, 0.0, 64, 48, box, ones / 2, ones, ones, box))
        sink.end({"frames": 1})
    code = f"""
import stream_rpn
results = stream_rpn.read({str(tmp_path / name)!r})
assert [len(proposals) for proposals in results] == [1]
assert results.complete and len(results.sources) <= 1
"""
    assert heavy_after(code) == "[]"


def test_sinks_and_sources_are_named_without_torch_and_pyav():
    assert heavy_after("import stream_rpn.sinks, stream_rpn.sources, stream_rpn.models") == "[]"


# These are imported once the options of a command are known to be right.
WORK = {"runner", "recall", "findings"}


@pytest.mark.parametrize("name", sorted({path.stem for path in COMMANDS.glob("[a-z]*.py")} - WORK))
def test_commands_are_imported_without_torch(name):
    assert "torch" not in heavy_after(f"import stream_rpn.commands.{name}")


def test_every_scheme_of_live_outputs_has_a_sink():
    from stream_rpn.sinks import SCHEMES
    from stream_rpn.sinks.stream import FORMATS

    assert {f"{scheme}://" for scheme in FORMATS} <= SCHEMES.keys()
