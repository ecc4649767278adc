"""What the site has beside the pages of docs/: a hook of MkDocs.

Pages that stand elsewhere in the repository are taken in under names of their own, others are made
of the code when the site is built. All of them, and those of docs/, link to each other as they do
in a checkout; links to anything else lead to the repository.
"""

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import messages  # noqa: E402 (a neighbour of this file, which MkDocs lets hooks import)

# Path in the repository → page of the site.
TAKEN_IN = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/loop.md": "loop.md",
    "kernels/README.md": "kernels.md",
    **{
        f"stream_rpn/models/{card.name}": f"cards/{card.name}"
        for card in sorted((ROOT / "stream_rpn" / "models").glob("*.md"))
    },
}
_STANDS_AT = {page: place for place, page in TAKEN_IN.items()}
_LINK = re.compile(r"(?<=\]\()([^):#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not stand in docs/."""
    made = {page: (ROOT / place).read_text("utf-8") for place, page in TAKEN_IN.items()}
    made["command-line.md"] = command_line()
    made["messages.md"] = messages.page(ROOT, f"{config.repo_url}/blob/main")
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links as they are in the repository into those of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(_STANDS_AT.get(here, f"docs/{here}"))

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        on_site = TAKEN_IN.get(target, target.removeprefix("docs/"))
        if target in TAKEN_IN or target.startswith("docs/"):
            return posixpath.relpath(on_site, posixpath.dirname(here) or ".")
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{target}"

    return _LINK.sub(turned, markdown)


def command_line() -> str:
    """Returns `--help` of every command as a page."""
    from stream_rpn.commands import COMMANDS

    parts = ["# Command line\n\nWhat `--help` says, of every command.\n"]
    for name in ("", *COMMANDS):
        parts.append(f"## stream-rpn {name}\n\n```text\n{_help(name)}\n```\n")
    return "\n".join(parts)


def _help(name: str) -> str:
    from stream_rpn.cli import main

    said = io.StringIO()
    narrow = mock.patch.dict(os.environ, COLUMNS="92", NO_COLOR="1")
    with narrow, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([name, "--help"] if name else ["--help"])
    return said.getvalue().rstrip()
