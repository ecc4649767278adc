"""Names of files hold anything: what is shown of them obeys no control character."""

import io

import numpy as np
import pytest
from rich.console import Console

from stream_rpn.commands.progress import complain
from stream_rpn.commands.recall import _table
from stream_rpn.evaluation.recall import Recall
from stream_rpn.frame import StreamRPNError
from stream_rpn.printable import printable
from stream_rpn.sinks import open_sink, sink_class_of

HOSTILE = "a\x1b]0;title\x07\x9b2J\r\u202egnp.4pm\u2066\u200f\u2028b"


def test_a_message_has_no_control_characters(capsys):
    complain(f"{HOSTILE}\nstream-rpn: all is well: no such file")
    told = capsys.readouterr().err
    assert told == "stream-rpn: a�]0;title��2J��gnp.4pm���b�stream-rpn: all is well: no such file\n"


@pytest.mark.parametrize("name", ["é ü.mp4", "日本.mp4", "سلام.mp4", "👩‍💻.mp4", "a\u0301.mp4"])
def test_names_of_any_script_are_shown_as_they_are(name):
    assert printable(name) == name


def test_a_password_is_not_shown_where_an_output_is_unknown():
    for name in ("amqp://u:secret@h/x", "MQTT://u:secret@h/x"):
        with pytest.raises(StreamRPNError, match=r"//u:\*\*\*@h/x' has an unknown ext") as caught:
            sink_class_of(name)
        assert "secret" not in str(caught.value)
    assert "did you mean 'mqtt://u:***@h/x'?" in str(caught.value)


def test_a_name_with_a_nul_is_refused():
    with pytest.raises(StreamRPNError, match="NUL"):
        open_sink("x\0.jsonl")


@pytest.mark.parametrize("name", [HOSTILE, "a[/b].json", "[bold]x[/bold].json"])
def test_a_table_shows_a_name_and_takes_no_markup_from_it(name):
    recall = Recall({1: np.zeros((1, 4))}, {1: np.array([[0, 0, 8, 8.0]])})
    file = io.StringIO()
    table = _table({name: recall}, "as they are")
    Console(file=file, width=200, force_terminal=False).print(table.columns[1].header)
    assert file.getvalue().strip() == printable(name)
