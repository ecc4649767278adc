"""What pyproject.toml cannot say: links and pictures of the README that lead somewhere on an index.

In a checkout they are relative, so that they show what is in the checkout.
"""

import re
from pathlib import Path

from setuptools import setup

FILES = "https://github.com/stream-rpn/stream-rpn/blob/main/"
PICTURES = "https://raw.githubusercontent.com/stream-rpn/stream-rpn/main/"


def absolute(match: re.Match[str]) -> str:
    """Returns "![…](" or "[…](" with a path behind it as an address."""
    text, path = match.groups()
    return f"{text}{PICTURES if text.startswith('!') else FILES}{path}"


readme = Path(__file__).with_name("README.md").read_text("utf-8")
setup(
    long_description=re.sub(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)]+)", absolute, readme),
    long_description_content_type="text/markdown",
)
