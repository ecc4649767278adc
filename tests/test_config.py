"""A configuration says what the command line would, in a file, and of each source by itself."""

import argparse
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rpn import cli
from stream_rpn.commands import config
from stream_rpn.commands.arguments import (
    device,
    length,
    lengths,
    level,
    natural,
    overlap,
    positive,
    rate,
    share,
)
from stream_rpn.commands.checks import check_stream
from stream_rpn.commands.stream import stream_parser, tracker
from stream_rpn.commands.summary import describe
from stream_rpn.commands.wanted import wanted
from stream_rpn.frame import StreamRPNError
from stream_rpn.sources import address
from stream_rpn.tracking import TRACKERS

MASK = Path(__file__).resolve().parents[1] / "docs" / "car-detection.jpg"

TEXTS = st.text(st.sampled_from("ab1 .:/@{}-=#,é"), min_size=1, max_size=12)
COUNTS, RATES = st.integers(1, 10**6), st.floats(0.001, 1e6)

# What a type of the command line takes, as a value of TOML.
VALUES = {
    positive: COUNTS,
    natural: st.integers(0, 10**6),
    rate: RATES | COUNTS,
    share: st.floats(0, 1) | st.integers(0, 1),
    overlap: st.floats(0.001, 1),
    length: RATES,
    device: st.sampled_from(["auto", "cpu", "cuda:1"]),
    lengths: st.lists(st.floats(0.5, 999) | COUNTS, min_size=1, max_size=4),
    level: st.sampled_from(["off", "auto"]) | RATES,
    tracker: st.booleans() | st.sampled_from([*TRACKERS]),
}

# What is checked later than by the parser.
OF_NAME = {
    "start": RATES | st.just("01:02:03.5") | st.times().map(lambda t: t.replace(microsecond=0)),
    "region": st.lists(st.just("0,0,0.5,0,1,1") | st.just("1,2,3,4,5,6"), min_size=1, max_size=2),
    "tile": st.sampled_from(["auto", "off", 2, "3x2"]),
    "mask": st.just(str(MASK)),
}
OF_NAME["end"] = OF_NAME["start"]

OPTIONS = {
    next(name[2:] for name in action.option_strings if name.startswith("--")): action
    for action in stream_parser()._actions
    if action.option_strings and action.dest not in ("help", "version", "config")
}


def parsed(*argv: str) -> argparse.Namespace:
    return config.completed(config.parse(stream_parser, argv), stream_parser())


def read(text: str, *argv: str) -> argparse.Namespace:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "cameras.toml")).write_text(text, encoding="utf-8")
        return parsed("--config", str(path), *argv)


def options_of(arguments: argparse.Namespace) -> dict:
    return {k: v for k, v in vars(arguments).items() if k not in ("config", "given", "asked")}


def toml(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else json.dumps(value)


@st.composite
def option_values(draw):
    name = draw(st.sampled_from([*OPTIONS]))
    action = OPTIONS[name]
    if name in OF_NAME:
        return name, draw(OF_NAME[name])
    if action.nargs == 0:
        return name, draw(st.booleans())
    if action.choices:
        return name, draw(st.sampled_from([*action.choices]))
    if isinstance(action, argparse._AppendAction):
        return name, draw(st.lists(TEXTS, min_size=1, max_size=3))
    return name, draw(VALUES.get(action.type, TEXTS if action.type is None else COUNTS))


@settings(max_examples=80, deadline=None)
@given(option_values(), st.booleans())
def test_a_file_means_what_the_command_line_does(option, of_a_source):
    name, value = option
    if of_a_source and not belongs_to_a_source(name):
        of_a_source = False
    rows = [value] if OPTIONS[name].type in (lengths, None) and OPTIONS[name].nargs is None else []
    if isinstance(value, bool):
        argv = [f"--{name}"] * value
    elif rows and isinstance(value, list) and OPTIONS[name].type is lengths:
        argv = [f"--{name}={','.join(map(str, value))}"]
    else:
        argv = [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    line = f"{name} = {toml(value)}\n"
    source = '[[source]]\naddress = "v.mp4"\n'
    (by_file,) = read(source + line if of_a_source else line + source).asked
    (by_command_line,) = parsed("v.mp4", *argv).asked
    expected = options_of(by_command_line.arguments) | {"sources": []}
    assert options_of(by_file.arguments) == expected
    assert by_file.address == by_command_line.address


def belongs_to_a_source(name: str) -> bool:
    groups = [g for g in stream_parser()._action_groups if g.title in config.OF_A_SOURCE]
    return any(OPTIONS[name].dest == a.dest for g in groups for a in g._group_actions)


def test_the_groups_whose_options_are_a_sources_are_there():
    assert {"start", "max-frames", "reconnect"} < {n for n in OPTIONS if belongs_to_a_source(n)}
    assert not belongs_to_a_source("model")


FILE = """\
stride = 2
output = ["{stem}.jsonl", "{stem}.csv"]

[[source]]
name = "door"
address = "door.mp4"
stride = 3

[[source]]
address = "yard.mp4"
"""


def test_a_source_goes_before_all_and_the_command_line_before_both():
    door, yard = read(FILE).asked
    assert (door.name, door.arguments.stride) == ("door", 3)
    assert (yard.name, yard.arguments.stride) == ("", 2)
    assert [one.arguments.stride for one in read(FILE, "--stride", "4").asked] == [4, 4]


def test_outputs_and_sources_of_the_command_line_take_the_place_of_the_files():
    arguments = read(FILE, "-o", "x.npz", "other.mp4")
    assert arguments.output == ["x.npz"]
    assert [one.address for one in arguments.asked] == ["other.mp4"]
    assert read(FILE).output == ["{stem}.jsonl", "{stem}.csv"]


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("stride = 0", 1, "'stride' must be at least 1, got 0"),
        ("# all\nstide = 1", 2, "there is no option 'stide'; did you mean 'stride'?"),
        ("max_frames = 1", 1, "did you mean 'max-frames'?"),
        ("quiet = 1", 1, "'quiet' must be true or false, got 1"),
        ("stride = true", 1, "'stride' must be a number or a text, got true"),
        ('preset = "x"', 1, "'preset': invalid choice"),
        ('track = "x"', 1, "'track': there is no tracker 'x'"),
        ("output = []", 1, "'output' must not be an empty list"),
        ('[[source]]\naddress = "x"\nregion = []', 3, "'region' must not be an empty list"),
        ('start = "soon"', 1, "'soon' is not a time"),
        ("config = 1", 1, "no option 'config'"),
        ('address = "x"', 1, "belongs to a source"),
        ('[source]\naddress = "x"', 1, "begins with a line [[source]]"),
        ('[[source]]\naddress = "x"\n\n[[source]]\nname = "y"', 4, "has no address"),
        ('[[source]]\naddress = "x"\nmodel = "tiny"', 3, "of the whole run and no source's"),
        ('[[source]]\naddress = "x"\n[[source]]\naddress = "y"\nfps = -1', 5, "above 0, got '-1'"),
        ('[[source]]\naddress = "x"\nname = "a/b"', 3, "must have no slashes"),
        ('[[source]]\naddress = "x"\nname = 1', 3, "'name' must be a text, got 1"),
        ('[[source]]\naddress = "rtsp://${HOME}/"', 2, "begin with STREAM_RPN_ are"),
        ('[[source]]\naddress = "rtsp://${STREAM_RPN_NONE}/"', 2, "no variable STREAM_RPN_NONE"),
        ('source = [{address = "x", fps = 0}]', 1, "above 0, got '0'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_line(text, line, sentence):
    with pytest.raises(StreamRPNError) as error:
        read(text)
    assert f"cameras.toml, line {line}: " in str(error.value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('address = "nowhere.mp4"', "nowhere.mp4: no such file"),
        ('address = "@nowhere.txt"', "'nowhere.txt' cannot be read"),
        ('address = "synthetic:"\nstart = 5', "--end 3 is not after --start 5"),
        ('address = "synthetic:"\nregion-crop = true', "there must be a region or a mask"),
    ],
)
def test_what_does_not_go_together_in_a_source_is_told_with_its_line(lines, sentence):
    arguments = read(f"end = 3\n\n[[source]]\n{lines}")

    def checked() -> None:
        check_stream(arguments)
        wanted(arguments)

    with pytest.raises(StreamRPNError, match=r"cameras\.toml, line 3: ") as error:
        checked()
    assert sentence in str(error.value)


def test_every_long_name_of_an_option_is_known():
    arguments = read('colour = "source"\n[[source]]\naddress = "x"\nstream = 1')
    assert arguments.color == "source"
    assert arguments.asked[0].arguments.video_stream == 1


def test_a_name_is_given_once():
    with pytest.raises(StreamRPNError, match="line 6: another source has the name 'door' already"):
        read('[[source]]\naddress = "x"\nname = "door"\n[[source]]\naddress = "y"\nname = "door"')


@pytest.mark.parametrize("text", ["x =", "", "[[source]]"])
def test_what_is_no_configuration_is_refused(text):
    with pytest.raises(StreamRPNError, match=r"cameras\.toml"):
        read(text)
    with pytest.raises(StreamRPNError, match="No such file"):
        parsed("--config", "nowhere.toml")


def test_without_a_file_a_source_is_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed()
    assert "required: SOURCE" in capsys.readouterr().err


def test_secrets_of_the_environment_are_used_and_never_shown(monkeypatch):
    monkeypatch.setattr(address, "_secrets", set())
    monkeypatch.setenv("STREAM_RPN_DOOR", "hunter2")
    monkeypatch.setenv("STREAM_RPN_YARD", "rtsp://me:swordfish@yard/1")
    arguments = read(
        '[[source]]\naddress = "rtsp://door/${STREAM_RPN_DOOR}/live"\n'
        '[[source]]\naddress = "${STREAM_RPN_YARD}"\n'
    )
    door, yard = wanted(arguments)
    assert door.uri == "rtsp://door/hunter2/live"
    assert address.masked(door.uri) == "rtsp://door/***/live"
    assert address.masked(yard.uri) == "rtsp://me:***@yard/1"


def test_each_source_has_its_own_options_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cameras.toml").write_text(
        "size = 96\ntop = 3\nquiet = true\noutput = '{stem}.jsonl'\n"
        "[[source]]\nname = 'door'\naddress = 'synthetic:128x96@20,12'\nstride = 3\n"
        "[[source]]\nname = 'yard'\naddress = 'synthetic:96x64@20,12'\nmax-frames = 2\n"
        "gate = 'auto'\nregion = '0,0,0.5,0,0.5,1,0,1'\n"
    )
    assert cli.main(["--config", "cameras.toml", "--json-summary", "all.json"]) == 0
    told = json.loads(Path("all.json").read_text())["sources"]
    assert [one["name"] for one in told] == ["door", "yard"]
    assert describe(told[0]).startswith("door (synthetic:128x96@20,12): 4 frames")
    headers, counts = [], []
    for name in ("door", "yard"):
        header, *frames, _ = map(json.loads, Path(f"{name}.jsonl").read_text().splitlines())
        headers.append(header)
        counts.append([frame["frame"] for frame in frames])
    assert counts == [[0, 3, 6, 9], [0, 1]]
    assert [h["parameters"]["selection"]["stride"] for h in headers] == [3, 1]
    assert ["gate" in h["parameters"] for h in headers] == [False, True]
    assert ["view" in h["parameters"] for h in headers] == [False, True]
    assert all((x1 + x2) / 2 < 48 for f in frames for x1, _, x2, _ in f["boxes"])
    assert [h["source"] for h in headers] == ["synthetic:128x96@20,12", "synthetic:96x64@20,12"]
