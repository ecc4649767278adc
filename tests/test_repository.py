"""Promises about the repository itself: packaging, the README's numbers, the layout."""

import re
import tomllib
from pathlib import Path

import pytest

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
    link = ROOT / "stream_rpn" / "kernels"
    assert link.resolve() == ROOT / "kernels"
    assert (link / "__init__.py").is_file()


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
