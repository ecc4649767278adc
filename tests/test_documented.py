"""What pages show can be typed: options and commands are parsed, names of Python are there."""

import ast
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import stream_rpn
from stream_rpn.commands import COMMANDS
from stream_rpn.commands.parser import Parser
from stream_rpn.commands.stream import stream_parser

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("*.md", "docs/**/*.md", "examples/*.md", "stream_rpn/models/*.md")
PAGES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in ROOT.glob(folder))
# Of docker, pip, TensorBoard, of the benchmarks and of the examples.
OF_OTHERS = {
    *("--build", "--build-arg", "--cpus", "--gpus", "--group-add", "--read-only", "--rm"),
    *("--target", "--tmpfs", "--user", "--extra-index-url", "--logdir"),
    *("--base", "--count", "--data", "--first", "--only", "--update"),
}


def parser_of(command):
    if command is None:
        return stream_parser()
    parser = Parser(prog=f"stream-rpn {command}")
    import_module(COMMANDS[command][0]).add_arguments(parser)
    return parser


@pytest.fixture(scope="module")
def options():
    parsers = [parser_of(command) for command in (None, *COMMANDS)]
    return {
        name for parser in parsers for action in parser._actions for name in action.option_strings
    }


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_option_that_a_page_names_is_there(page, options):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", (ROOT / page).read_text()))
    assert named - options - OF_OTHERS == set()


def commands(text):
    """Yields the words of every `stream-rpn …` that stands as a line, alone or within a pipe."""
    lines = re.findall(r"^ {4}(?! *\$)(.*)$", text.replace("\\\n", ""), re.MULTILINE)
    for line in lines:
        _, found, rest = line.partition("stream-rpn ")
        if not found or line.startswith(("docker ", "stream-rpn: ")):
            continue
        shell = shlex.shlex(rest, posix=True, punctuation_chars=True)
        shell.wordchars += "@:,{}[]…"
        words = []
        for word in shell:
            if word in ("|", ">", "<", "<(", ")", ";"):
                break
            words.append(word)
        if words and words[0] not in ("SOURCE", "COMMAND"):
            yield words


def test_every_command_of_the_pages_can_be_parsed():
    shown = [words for page in PAGES for words in commands((ROOT / page).read_text())]
    assert len(shown) > 60
    for words in shown:
        command = words[0] if words[0] in COMMANDS else None
        try:
            parser_of(command).parse_intermixed_args(words[1:] if command else words)
        except SystemExit:
            pytest.fail(f"stream-rpn {shlex.join(words)}")


def calls(text):
    """Yields (name, keywords) of every `stream_rpn.name(…)` in the Python of a page."""
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            match node:
                case ast.Call(ast.Attribute(ast.Name("stream_rpn"), name)):
                    yield name, [keyword.arg for keyword in node.keywords]


def test_every_call_of_the_pages_has_keywords_that_are_there():
    shown = [call for page in PAGES for call in calls((ROOT / page).read_text())]
    assert len(shown) > 15
    options_of_load = set(inspect.signature(stream_rpn.load).parameters)
    for name, keywords in shown:
        parameters = inspect.signature(getattr(stream_rpn, name)).parameters
        assert set(keywords) - set(parameters) - options_of_load == set(), name
