"""The page: one HTML file that opens from disk, with data, pictures, style and script inside."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from stream_rpn.explanation import charts, pictures
from stream_rpn.explanation.facts import Explanation
from stream_rpn.frame import StreamRPNError


def render(facts: Explanation) -> str:
    """Returns the page.

    Raises:
        StreamRPNError: matplotlib or jinja2 is not installed.
    """
    templates = environment()
    drawn = charts.draw_charts(facts)
    return str(
        templates.get_template("page.html").render(
            facts=facts.record(),
            images=pictures.of_page(facts),
            charts={name: charts.svg(figure) for name, figure in drawn.items()},
        )
    )


def environment() -> Any:
    """Returns jinja2's environment with the page's parts.

    Raises:
        StreamRPNError: matplotlib or jinja2 is not installed.
    """
    charts.matplotlib()
    try:
        import jinja2
    except ImportError as error:
        raise StreamRPNError(
            "a page needs jinja2; `pip install 'stream-rpn[explain]'` provides it"
        ) from error
    folder = files("stream_rpn.explanation")
    names = ("page.html", "page.css", "page.js")
    made = jinja2.Environment(
        loader=jinja2.DictLoader({name: (folder / name).read_text("utf-8") for name in names}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["data"] = _data
    made.filters["count"] = lambda value: f"{value:,}"
    made.filters["g"] = lambda value, digits=3: f"{value:.{digits}g}"
    return made


def _data(value: Any) -> str:
    """Returns JSON that can stand in a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
