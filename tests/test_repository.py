"""Promises about the repository itself: packaging, the README's numbers, the layout."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stream_rpn.kernels
from bench import readme

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_packaged():
    """A forgotten subpackage works in a checkout and is missing from the wheel."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    present = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in (ROOT / "stream_rpn").rglob("__init__.py")
        if "kernels" not in init.parts
    } | {"stream_rpn.kernels"}
    assert declared == present


def test_the_kernels_are_reachable_under_the_package():
    assert Path(stream_rpn.kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"


def test_a_checkout_without_symbolic_links_has_the_kernels(tmp_path):
    """As git makes it on Windows: what is a link is a small file that names the target."""
    for path in ROOT.iterdir():
        if path.name in ("kernels", "bench", "tests"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "stream_rpn").mkdir()
    for path in (ROOT / "stream_rpn").iterdir():
        if path.name == "kernels":
            (tmp_path / "stream_rpn" / "kernels").write_text("../kernels")
        else:
            (tmp_path / "stream_rpn" / path.name).symlink_to(path)
    code = (
        "import stream_rpn.kernels, stream_rpn.kernels.shipped as shipped;"
        "print(stream_rpn.kernels.__file__, shipped.__name__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == [str(tmp_path / "kernels" / "__init__.py"), "stream_rpn.kernels.shipped"]


def test_what_is_installed_finds_nothing_beside_the_package():
    """Whatever else is installed would be importable as a part of ours."""
    assert [Path(place).name for place in stream_rpn.__path__] == ["stream_rpn"]


@pytest.mark.parametrize("page", readme.PAGES)
def test_a_page_says_what_was_measured(page):
    text = (ROOT / page).read_text()
    assert readme.rendered(page, text) == text


def test_the_pictures_show_what_was_measured():
    assert readme.stale_pictures() == []


PAGES = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_links_of_a_page_lead_somewhere(page):
    """To files of the repository, and to headings in them; the site's own check sees fewer."""
    text = (ROOT / page).read_text()
    missing = []
    for link in re.findall(r"\]\(([^):]+)\)", text):
        target, _, heading = link.partition("#")
        place = (ROOT / page).parent / target if target else ROOT / page
        if not place.exists() or (heading and heading not in _anchors(place)):
            missing.append(link)
    assert missing == []


def _anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_map_shows_rooms_that_are_there():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = text[text.index("## The rooms") : text.index("## Where to add")]
    named = re.findall(r"`([\w/.]+(?:/|\.py))`", rooms)
    assert len(named) > 20
    places = [ROOT, ROOT / "stream_rpn"]
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert [name for name in missing if name != "web/"] == []
    folders = {init.parent.name for init in (ROOT / "stream_rpn").glob("*/__init__.py")}
    unnamed = {name for name in folders if f"{name}/`" not in rooms}
    assert unnamed == set()


def test_modules_fit_a_reader():
    """Kernels may be longer: they are read line by line beside their reference."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("stream_rpn", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if "kernels" not in path.parts
    }
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_only_the_triton_files_import_triton_at_the_top():
    offenders = [
        path.name
        for folder in (ROOT / "kernels", ROOT / "stream_rpn")
        for path in folder.rglob("*.py")
        if not path.name.endswith("_triton.py")
        and re.search(r"^(import|from) triton", path.read_text(), re.MULTILINE)
    ]
    assert offenders == []
