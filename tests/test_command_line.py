"""What is wrong with a command line is told before anything heavy is imported; helps are whole."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from stream_rpn.commands import COMMANDS
from stream_rpn.commands.parser import Parser
from stream_rpn.commands.stream import stream_parser

CLIP = "synthetic:64x64@10,2"
LONG = "a" * 300  # no file can be called so

# Each with what its sentence must say.
WRONG = [
    ("", "SOURCE"),
    ("nothing.mp4", "nothing.mp4: no such file"),
    ("modles", "modles: no such file or directory; did you mean `stream-rpn models`?"),
    ("empty/", "empty/ is a directory without videos"),
    ("'*.avi'", "matches no videos"),
    ("@nothing.txt", "'nothing.txt' cannot be read"),
    (f"{CLIP} --overwrit", "did you mean --overwrite?"),
    (f"{CLIP} -o a.txt", "did you mean 'a.mot.txt'"),
    (f"{CLIP} -o nowhere/a.jsonl", "'nowhere' does not exist"),
    (f"{CLIP} -o a.jsonl", "'a.jsonl' exists; --overwrite replaces it"),
    (f"{CLIP} -o b.csv -o b.csv", "given twice"),
    (f"{CLIP} {CLIP} -o b.npz", "{stem}"),
    (f"{CLIP} -o null --json-summary a.jsonl", "'a.jsonl' exists"),
    (f"{CLIP} -o null --serve eight", "[HOST:]PORT"),
    (f"{CLIP} -o null --serve 0.0.0.0:0", "--serve-token"),
    (f"{CLIP} -o null --serve-token 12345678", "--serve, which is not given"),
    (f"{CLIP} -o null --serve 0 --serve-token short", "at least 8 characters"),
    (f"{CLIP} -o zmq:tcp://0.0.0.0:1", "127.0.0.1"),
    (f"{CLIP} --model resnet", "there is no model 'resnet'"),
    (f"{CLIP} --model mine.safetensors", "no checkpoint file 'mine.safetensors'"),
    (f"{CLIP} --weights mine.pth", "no checkpoint file 'mine.pth'"),
    (f"{CLIP} --model {LONG}", f"there is no model '{LONG}'"),
    (f"{CLIP} --weights {LONG}", f"no checkpoint file '{LONG}'"),
    (f"@{LONG}", "cannot be read: File name too long"),
    (f"{CLIP} --model a.jsonl --weights random", "is a checkpoint already"),
    (f"{CLIP} --device tpu", "choose auto, cpu, cuda"),
    (f"{CLIP} --dtype int4", "choose from"),
    (f"{CLIP} --engine tensorrt", "choose from"),
    (f"{CLIP} --engine openvino --device cuda", "the engine openvino cannot be used"),
    (f"{CLIP} --batch 0", "--batch must be auto or a number from 1 up, got '0'"),
    (f"{CLIP} --top some", "--top must be auto or a number from 1 up"),
    (f"{CLIP} --top auto --model vgg16", "--top auto is known of nanodet_m"),
    (f"{CLIP} --nms 0", "--nms must be a number above 0, at most 1, got '0'"),
    (f"{CLIP} --score-thresh 2", "--score-thresh must be a number from 0 to 1"),
    (f"{CLIP} --min-size -1", "--min-size must be a number from 0 up"),
    (f"{CLIP} --anchor-sizes 1,inf", "--anchor-sizes must be numbers above 0"),
    (f"{CLIP} --start soon", "'soon' is not a time"),
    (f"{CLIP} --start 3 --end 00:03", "--end 3 is not after --start 3"),
    (f"{CLIP} --end 0", "--end 0 is not after --start 0"),
    (f"{CLIP} --fps nan", "--fps must be a number above 0"),
    ("eval --annotations no.json --images .", "--annotations no.json: no such file"),
    ("eval --images .", "--annotations"),
    ("eval --annotations a.jsonl --images . --model resnet", "there is no model 'resnet'"),
    ("train -o a.pth", "must end in .safetensors"),
    ("train -o b.safetensors --annotations no.json --images .", "no.json: no such file"),
    (f"train -o {LONG}.safetensors --annotations no.json --images .", "no.json: no such file"),
    ("train -o b.safetensors --device tpu", "choose auto, cpu, cuda"),
    ("export nothing", "there is no model 'nothing'"),
    ("export -o a.txt", "must end with .onnx or .xml"),
    ("explain nothing.mp4", "nothing.mp4: no such file"),
    (f"explain {CLIP} --model resnet", "there is no model 'resnet'"),
    (f"explain {CLIP} --gt no.txt", "--gt no.txt: no such file"),
    (f"explain {CLIP} -o a.png", "name it report.html or DIR/"),
    (f"explain {CLIP} --time soon", "'soon' is not a time"),
    (f"explain {CLIP} --at 3", "--at must be X,Y"),
    ("bench nothing.mp4", "nothing.mp4: no such file"),
    ("bench --batch 1,x", "--batch must be"),
    ("bench --seconds 0", "--seconds must be a number above 0"),
    ("bench --json a.jsonl", "'a.jsonl' exists"),
    ("render nothing.jsonl video.mp4 -o b.mp4", "nothing.jsonl"),
    (f"render {LONG}.jsonl video.mp4 -o b.mp4", "does not exist"),
    ("models --yaml", "unknown: --yaml"),
    ("doctor --json a.jsonl", "'a.jsonl' exists"),
    ("devices all", "unknown: all"),
]

# In one process, as each of its own would take longer than all of them.
RUN = """
import contextlib, io, json, shlex, sys
from stream_rpn import cli
for line in json.loads(sys.argv[1]):
    sys.stderr = told = io.StringIO()
    try:
        code = cli.main(shlex.split(line))
    except SystemExit as error:
        code = error.code
    heavy = [name for name in ("torch", "openvino") if name in sys.modules]
    print(json.dumps([code, told.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "a.jsonl").write_text("{}")
    lines = [line for line, _ in WRONG]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert {path.name for path in folder.iterdir()} == {"empty", "a.jsonl"}
    answers = [json.loads(answer) for answer in done.stdout.splitlines()]
    return dict(zip(lines, answers, strict=True))


@pytest.mark.parametrize(("line", "sentence"), WRONG)
def test_a_wrong_command_line_is_told_at_once_in_one_sentence(told, line, sentence):
    code, err, heavy = told[line]
    assert code == 2
    assert sentence in err
    assert err.startswith("stream-rpn: ")
    assert err.count("\n") == 1
    assert not heavy


def parsers() -> list[argparse.ArgumentParser]:
    found: list[argparse.ArgumentParser] = [stream_parser()]
    for name, (module, _) in COMMANDS.items():
        found.append(Parser(prog=f"stream-rpn {name}"))
        import_module(module).add_arguments(found[-1])
    return found


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.prog)
class TestHelp:
    def test_every_default_is_told(self, parser):
        told = " ".join(parser.format_help().split())
        for action in parser._actions:
            value = action.default
            if action.nargs == 0:
                assert f"{action.help} (default" not in told, action.dest
            elif value not in (None, False, "", [], argparse.SUPPRESS):
                shown = value if isinstance(value, str) else f"{value:,}".removesuffix(".0")
                assert f"(default: {shown}" in told, action.dest

    def test_examples_are_at_its_end_and_can_be_parsed(self, parser):
        lines = re.findall(r"^  (?:.*\| )?(stream-rpn .*)$", parser.format_help(), re.MULTILINE)
        mine = [shlex.split(re.split(r"[|>]", line)[0], comments=True) for line in lines]
        mine = [words for words in mine if words[: len(parser.prog.split())] == parser.prog.split()]
        assert len(mine) >= 2 or parser.prog == "stream-rpn devices"
        for words in mine:
            parser.parse_args(words[len(parser.prog.split()) :])


def test_helps_import_nothing_heavy():
    code = "import sys\nfrom importlib import import_module\nfrom stream_rpn import commands\n"
    code += "from stream_rpn.commands.parser import Parser\n"
    code += "for module, _ in commands.COMMANDS.values():\n"
    code += "    parser = Parser()\n"
    code += "    import_module(module).add_arguments(parser)\n"
    code += "    parser.format_help()\n"
    code += "print([n for n in ('torch', 'openvino', 'av', 'rich', 'aiohttp') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
