"""The documentation: complete, true, and a site whose links lead somewhere."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import stream_rpn
from stream_rpn.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def sentences():
    sys.path.insert(0, str(DOCS / "hooks"))
    try:
        import messages

        return messages.sentences(ROOT)
    finally:
        sys.path.remove(str(DOCS / "hooks"))


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    present = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(present) > 15
    assert present - listed == set()


def test_every_extra_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "start.md").read_text(), re.M))
    assert told == set(project["optional-dependencies"]) - {"dev"}


def test_the_reference_has_all_that_is_public():
    shown = re.findall(r"^::: stream_rpn\.(\w+)$", (DOCS / "reference.md").read_text(), re.M)
    assert sorted(shown) == sorted(stream_rpn.__all__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.mp4"],
        ["*.mp4"],
        ["@missing.txt"],
        ["empty.mp4"],
        ["synthetic:", "-o", "x.txt"],
        ["synthetic:", "-o", "empty.mp4"],
        ["synthetic:", "--serve-token", "12345678"],
        ["synthetic:", "--batch", "none"],
        ["eval", "--annotations", "empty.mp4", "--images", "."],
    ],
    ids=" ".join,
)
def test_what_the_program_says_is_on_the_page_of_messages(
    arguments, sentences, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert [s.text for s in sentences if s.pattern().search(said) and len(s.text) > 12] != [], said


def test_the_sentences_of_troubleshooting_are_said(sentences):
    page = (DOCS / "troubleshooting.md").read_text()
    shown = re.findall(r"^\*\*`([^`]*…[^`]*)`", page, re.MULTILINE)
    assert len(shown) > 2
    parts = [part.strip(" ;") for text in shown for part in re.split("…|NAME", text)]
    said = " ".join(sentence.text for sentence in sentences)
    assert [part for part in parts if part not in said] == []


def test_a_sentence_is_not_matched_by_another(sentences):
    one, *_ = [s for s in sentences if s.text.endswith("its index (moov) is missing")]
    assert one.pattern().search("a.mp4 is cut off: its index (moov) is missing")
    assert not one.pattern().search("a.mp4 is cut off: the end of the JPEG data is missing")
    assert [s for s in sentences if s.pattern().search("the moon is made of green cheese")] == []
    assert one.file == "stream_rpn/sources/container.py"


def test_the_site_is_built_without_a_warning(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("MkDocs is not installed; `make docs` builds the site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stderr) == (0, "")
    home = (tmp_path / "index.html").read_text()
    assert 'href="start/"' in home
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert all(f'id="stream_rpn.{name}"' in reference for name in stream_rpn.__all__)
    assert "its index (moov) is missing" in (tmp_path / "messages" / "index.html").read_text()
    assert "--reconnect N" in (tmp_path / "command-line" / "index.html").read_text()
