"""Every sentence that the program can say, read from its source.

What is raised as an error, refused by the parser of arguments, or logged, is found in the syntax
tree. What is not known before the program runs is shown as its name in ‹ ›; where a part has
several forms, each of them makes a sentence.
"""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Rooms of the code → what a reader would look under; the first that fits.
AREAS = {
    "stream_rpn/(sources|decode|clock|yuv)": "Sources",
    "stream_rpn/sinks/web": "Watching in a browser",
    "stream_rpn/(sinks|commands/outputs)": "Outputs",
    "stream_rpn/(results|tables|pickles)": "Reading results",
    "stream_rpn/(model|rpn|fusion|anchors)": "Models",
    "stream_rpn/(network|engines|compute|cores)": "What computes",
    "stream_rpn/(training|commands/train)": "Training",
    "stream_rpn/(evaluation|commands/eval|commands/image_ids)": "Evaluation",
    "stream_rpn/(explanation|commands/explain)": "Explaining a frame",
    "stream_rpn/(measure|commands/bench)": "Measuring",
    "kernels": "Operations on tensors",
    "stream_rpn/(commands|cli)": "Commands and options",
    "": "Python and the rest",
}
_RAISED = re.compile(r"\w*Error|ArgumentTypeError|Usage|HTTP\w+")
_SAID = {"complain", "error", "warning", "info"}
_MOST_FORMS = 12


@dataclass(frozen=True, order=True)
class Sentence:
    """One sentence: as the page shows it, and where it is said."""

    text: str
    file: str
    line: int

    def pattern(self) -> re.Pattern[str]:
        """Returns what matches the sentence as the program says it."""
        parts = re.split(r"(‹[^›]*›)", self.text)
        return re.compile("".join(".*" if p.startswith("‹") else re.escape(p) for p in parts), re.S)


def page(root: Path, source_url: str) -> str:
    """Returns the page of all sentences, by area, each with a link to where it is said."""
    by_area: dict[str, list[Sentence]] = {area: [] for area in AREAS.values()}
    for sentence in sentences(root):
        by_area[_area(sentence.file)].append(sentence)
    lines = [
        "# All messages",
        "",
        "Every sentence that the program can say, read from its source when this page was made.",
        "Search for a few of its words. What stands in ‹ › is filled in when it is said: a file, a",
        "number, an option, or the reason that the system gave. A sentence says what is wrong,",
        "where, and what to do; the link leads to the lines that decide it.",
        "[Troubleshooting](troubleshooting.md) has what people meet first.",
    ]
    for area, found in by_area.items():
        if found:
            lines += ["", f"## {area}", ""]
            lines += [f"- {_code(s.text)} [↗]({source_url}/{s.file}#L{s.line})" for s in found]
    return "\n".join(lines) + "\n"


def sentences(root: Path) -> list[Sentence]:
    """Returns the sentences of the package and its kernels, each once, in order of the alphabet."""
    trees = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8"))
        for folder in ("stream_rpn", "kernels")
        for path in sorted((root / folder).rglob("*.py"))
        if path.parent.name != "kernels" or folder == "kernels"  # not by the link to them, too
    }
    found: dict[str, Sentence] = {}
    returned = _returned_texts(trees.values())
    for file, tree in trees.items():
        for text, line in _said_in(tree, returned):
            found.setdefault(text, Sentence(text, file, line))
    return sorted(found.values(), key=lambda sentence: sentence.text.lower())


def _returned_texts(trees: Iterable[ast.Module]) -> dict[str, list[ast.expr]]:
    """Returns the texts that functions return, by name: they are parts of sentences."""
    returned: dict[str, list[ast.expr]] = {}
    for tree in trees:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                ends = [node.value for node in _own(function) if isinstance(node, ast.Return)]
                texts = [value for value in ends if value is not None and _is_text(value)]
                returned.setdefault(function.name, []).extend(texts)
    return returned


def _said_in(tree: ast.Module, returned: dict[str, list[ast.expr]]) -> Iterator[tuple[str, int]]:
    of_module = list(_own(tree))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for nodes in (of_module, *(list(_own(function)) for function in functions)):
        reader = _Reader([*of_module, *nodes], returned)
        for node in nodes:
            for argument in _spoken(node):
                for text in reader.forms(argument):
                    text = " ".join(text.split())
                    # What only passes on another's words is none of ours.
                    if len(re.findall(r"[a-z]{2,}", re.sub(r"‹[^›]*›", "", text))) >= 2:
                        yield text, node.lineno


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Walks a scope without the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _spoken(node: ast.AST) -> Iterable[ast.expr]:
    if not isinstance(node, ast.Call):
        return ()
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _SAID and isinstance(node.func, ast.Attribute):
        name = name if getattr(node.func.value, "id", "") in ("log", "parser") else ""
    if not (_RAISED.fullmatch(name) or name in _SAID):
        return ()
    texts = [word.value for word in node.keywords if word.arg == "text"]
    return node.args[:1] or texts[:1]


class _Reader:
    """Reads expressions as the texts that they may become, given what is visible to them."""

    def __init__(self, visible: Iterable[ast.AST], returned: dict[str, list[ast.expr]]) -> None:
        self._returned = returned
        self._values: dict[str, list[ast.expr]] = {}
        for node in visible:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._values.setdefault(node.targets[0].id, []).append(node.value)

    def forms(self, node: ast.AST, depth: int = 0) -> list[str]:
        if isinstance(node, ast.Constant):
            return [node.value if isinstance(node.value, str) else f"{node.value}"]
        if isinstance(node, ast.JoinedStr):
            return self._joined(node.values, depth)
        if isinstance(node, ast.FormattedValue):
            return self.forms(node.value, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([node.left, node.right], depth)
        if isinstance(node, ast.IfExp):
            return [*self.forms(node.body, depth), *self.forms(node.orelse, depth)][:_MOST_FORMS]
        if isinstance(node, ast.BoolOp):
            return [form for value in node.values for form in self.forms(value, depth)][
                :_MOST_FORMS
            ]
        if isinstance(node, ast.Name) and depth < 3:
            values = [v for v in self._values.get(node.id, []) if _is_text(v) or self._made(v)]
            if values:
                return [f for value in values for f in self.forms(value, depth + 1)][:_MOST_FORMS]
        if isinstance(node, ast.Call) and depth < 3:
            made = [form for value in self._made(node) for form in self.forms(value, depth + 1)]
            if made:
                return made[:_MOST_FORMS]
        return [f"‹{_name(node)}›"]

    def _made(self, node: ast.expr) -> list[ast.expr]:
        """Returns the texts that a call may give."""
        function = getattr(node, "func", None)
        return self._returned.get(getattr(function, "attr", getattr(function, "id", "")), [])

    def _joined(self, parts: list[ast.expr], depth: int) -> list[str]:
        all_forms = (self.forms(part, depth) for part in parts)
        ways = itertools.islice(itertools.product(*all_forms), _MOST_FORMS)
        return ["".join(way) for way in ways]


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _name(node: ast.AST) -> str:
    """Returns the word that says best what an expression stands for."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").replace("_", " ")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").replace("_", " ")
    if isinstance(node, ast.Call):
        # str(path), len(names), sink.name_of(uri): of what, rather than which function.
        words = [
            _name(argument) for argument in node.args if not isinstance(argument, ast.Constant)
        ]
        return next((word for word in words if word != "…"), "") or _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return "…"


def _area(file: str) -> str:
    return next(area for rooms, area in AREAS.items() if re.match(rooms, file))


def _code(text: str) -> str:
    """Returns Markdown that shows a text as it is, whatever is in it."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"
