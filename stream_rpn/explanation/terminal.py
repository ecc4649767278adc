"""An explanation as a page of a terminal: the same facts, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from stream_rpn.explanation.facts import Explanation
from stream_rpn.printable import printable


def page(facts: Explanation) -> RenderableType:
    """Returns what to print."""
    return Group(*_parts(facts, facts.record()))


def _parts(facts: Explanation, record: dict[str, Any]) -> Iterator[RenderableType]:
    frame, given = record["frame"], record["input"]
    when = "" if frame["seconds"] is None else f" at {frame['seconds']:.2f} s"
    trained = "" if record["trained"] else ", not trained"
    yield (
        f"[bold]{escape(printable(record['source']))}[/bold], frame {frame['index']}{when}, "
        + escape(f"{record['model']}{trained}")
    )

    yield _heading(1, "What the network gets to see")
    resized, padded = given["resized"], given["padded"]
    yield _text(
        f"{frame['width']}×{frame['height']} → {resized[1]}×{resized[0]}, padded to "
        f"{padded[1]}×{padded[0]}; the way back: x ÷ {given['scale'][0]}, y ÷ {given['scale'][1]}"
    )
    at, rgb, value = (given["pixel"][name] for name in ("at", "rgb", "value"))
    yield _text(f"pixel {at[0]}, {at[1]}: RGB {_list(rgb)} → {_list(value)}")

    yield _heading(2, "Feature maps")
    yield _table(
        ["level", "stride", "H × W × C", "anchors", "inside", "cell sees", "head sees"],
        [
            [level["name"], level["stride"][1], " × ".join(map(str, [*level["size"],
             level["channels"]])), f"{level['anchors']:,}", f"{level['inside']:,}",
             _side(level["field"]), _side(level["window_field"])]
            for level in record["levels"]
        ],
    )  # fmt: skip

    point = record["points"][0]
    x, y = point["at"]
    yield _heading(3, f"At the point {x:g}, {y:g}")
    rows = []
    for level, cell, anchors, looked in zip(
        record["levels"], point["cells"], point["anchors"], record["cells"], strict=True
    ):
        shapes = [_sides(anchor["anchor_in_input"]) for anchor in anchors]
        more = f" … {shapes[-1]}" if len(shapes) > 1 else ""
        rows.append(
            [level["name"], f"{cell[0]}, {cell[1]}", f"{len(shapes)}: {shapes[0]}{more}",
             _sides(looked["window_in_input"]), looked["effective"]["half"],
             looked["effective"]["most"]]
        )  # fmt: skip
    yield _table(["level", "cell", "anchors", "depends on", "half from", "nine tenths from"], rows)

    yield _heading(4, "The head there")
    best = point["answer"]["contender"]
    looked = record["cells"][best["level"]]
    yield _text("objectness channels: " + _list(record["channels"]["objectness"][:12]))
    yield _text("  values: " + _list(looked["channels"]["objectness"][:12]))
    yield _text("delta channels: " + _list(record["channels"]["deltas"][:12]))
    yield _text("  values: " + _list(looked["channels"]["deltas"][:12]))
    if dot := looked["dot"]:
        rest = f" + {dot['rest']:.4g} ({dot['rest_name']})" if dot["rest_name"] else ""
        yield _text(
            f"{dot['row']}: {dot['terms']} weights · features + bias {dot['bias']:.4g} = "
            f"{dot['total']:.4g}{rest}; the logit is {best['logit']:.4g}"
        )

    yield _heading(5, "Its best anchor followed through")
    yield _text(f"anchor {_list(best['anchor_in_input'])} · deltas {_list(best['deltas'])}")
    yield _text(f"→ {_list(best['moved_in_input'])} → clipped {_list(best['box_in_input'])}")
    yield _text(
        f"→ in the frame {_list(best['box'])}; score {best['score']:.3g}, number "
        f"{best['rank']:,} of its level: {best['fate']}"
    )

    yield _heading(6, "Selection")
    yield _table(
        ["level", "anchors", "selected", "lowest logit selected"],
        [
            [level["name"], f"{level['anchors']:,}", f"{level['selected']:,}",
             "–" if level["cut"] is None else f"{level['cut']:.3f}"]
            for level in record["levels"]
        ],
    )  # fmt: skip
    yield _table(
        ["k per level", *(f"{other['k']:,}" for other in record["other_k"])],
        [
            [name, *(f"{other[key]:,}" for other in record["other_k"])]
            for name, key in (("candidates", "candidates"), ("proposals", "proposals"),
                              ("of the present ones", "common"))
        ],
    )  # fmt: skip

    yield _heading(7, "Suppression")
    yield _table(
        ["IoU threshold", *(f"{run['threshold']:g}" for run in record["suppressions"])],
        [["kept", *(f"{run['total']:,}" for run in record["suppressions"])]],
    )
    yield _text("[bold]Why not?[/bold] The best anchor at the point: ", point["answer"])
    if record["truth"] is not None:
        yield from _taught(record)

    yield _heading(9, "Translation")
    for shift in record["shifts"]:
        median = f"{np.median(shift['moved']):.2f}" if shift["moved"] else "–"
        yield _text(
            f"moved by {shift['pixels']} px, {shift['expected']:.2f} in the frame: "
            f"{shift['found']} of {shift['compared']} proposals found again, median move {median}"
        )

    yield _heading(10, "Cost, in milliseconds, by PyTorch")
    yield _text(", ".join(f"{name} {ms:.3g}" for name, ms in record["milliseconds"].items()))


def _taught(record: dict[str, Any]) -> Iterator[RenderableType]:
    truth = record["truth"]
    for index, answer in enumerate(truth["answers"], start=1):
        yield _text(f"Object {index}: ", answer)
    yield _heading(8, "What ground truth would teach")
    names = ("object", "background", "ignored", "crossing")
    yield _table(
        ["level", *names],
        [
            [level["name"], *(f"{counts[name]:,}" for name in names)]
            for level, counts in zip(record["levels"], truth["counts"], strict=True)
        ],
    )
    sample = truth["sample"]
    yield _text(
        f"minibatch: {len(sample['positives'])} objects, {len(sample['negatives'])} background; "
        + "; ".join(
            f"{name} loss: objectness {loss['objectness']:.3g}, box {loss['box']:.3g}"
            for name, loss in truth["losses"].items()
        )
    )


def _heading(number: int, text: str) -> RenderableType:
    head = f"[bold cyan]{number}[/bold cyan]  [bold]{text}[/bold]"
    return Padding(head, (1, 0, 0, 0), expand=False)


def _text(text: str, answer: dict[str, Any] | None = None) -> RenderableType:
    said = "" if answer is None else escape(answer["sentence"])
    remedies = [] if answer is None else [o["remedy"] for o in answer["obstacles"] if o["remedy"]]
    options = [
        f"--{name.replace('_', '-')} {value:g}" for each in remedies for name, value in each.items()
    ]
    if options:
        said += f" [dim]What would let it pass: {', '.join(options)}.[/dim]"
    return Padding(text + said, (0, 0, 0, 3), expand=False)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    return Padding(table, (0, 0, 0, 3), expand=False)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(value if isinstance(value, str) else f"{value:.4g}" for value in values)


def _side(value: int | None) -> str:
    return "all of it" if value is None else f"{value} px"


def _sides(box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    return f"{x2 - x1:g}×{y2 - y1:g}"
