"""`--config FILE`: the options of the command line, and sources with options of their own, as TOML.

The parser of the command line is the one list of options: what the file says becomes arguments, and
argparse takes them as it takes those of the command line, by the same names, types and limits.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any, NoReturn

from stream_rpn.frame import StreamRPNError
from stream_rpn.sources.address import keep_secret

# Whose options a source may have of its own: groups of the parser, by title.
OF_A_SOURCE = ("frames", "regions", "connections")
# What only the command line has.
_NOT_IN_A_FILE = ("help", "version", "config")

# Only these: a file from elsewhere must not carry other secrets of this machine to its addresses.
_VARIABLE = re.compile(r"\$\{(STREAM_RPN_\w+)\}")
_TABLE = re.compile(r"\s*\[\[?\s*[\"']?([\w-]+)")


@dataclass(frozen=True)
class Asked:
    """A source as the user named it.

    Attributes:
        address: a file, a URL, a camera, a pattern.
        name: what results are to call it; "" leaves that to its address.
        arguments: the options that hold for it.
        where: file and line where it begins, "" for the command line.
    """

    address: str
    name: str
    arguments: argparse.Namespace
    where: str = ""

    @contextmanager
    def telling_where(self) -> Iterator[None]:
        """Tells what is wrong with the source with the place where it stands."""
        try:
            yield
        except StreamRPNError as error:
            if not self.where:
                raise
            raise StreamRPNError(f"{self.where}: {error}") from error


def parse(
    new_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str]
) -> argparse.Namespace:
    """Returns the options of a command line, and as `given` those that it names.

    Args:
        new_parser: makes the parser.
        argv: the arguments; they may be intermixed.

    Raises:
        SystemExit: they are wrong.
    """
    parser = new_parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.config is None and not arguments.sources:
        parser.error("the following arguments are required: SOURCE")
    arguments.given = vars(_only_given(new_parser()).parse_intermixed_args(argv))
    del arguments.given["sources"]
    return arguments


def completed(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns options with those of the file that they name, and as `asked` the sources.

    What the command line says goes before what the file says of a source, and that before what the
    file says of all. Sources and outputs of the command line take the place of the file's.

    Args:
        arguments: what `parse` returned.
        parser: a new one.

    Raises:
        StreamRPNError: the file cannot be read, or is wrong; the sentence names the line.
    """
    given, tables = arguments.given, list[_Table]()
    if arguments.config is not None:
        file = _File(arguments.config, _only_given(parser))
        arguments = _merged(arguments, file.options, given)
        tables = file.tables
        if not (tables or arguments.sources):
            raise StreamRPNError(
                f"{arguments.config}: no [[source]] with an address is in it, and the command line "
                "names no source"
            )
    arguments.asked = [Asked(address, "", arguments) for address in arguments.sources] or [
        Asked(table.address, table.name, _merged(arguments, table.options, given), table.where)
        for table in tables
    ]
    return arguments


def _merged(first: argparse.Namespace, *others: dict[str, Any]) -> argparse.Namespace:
    """Returns options of which later ones go before earlier ones."""
    merged = dict(vars(first))
    for other in others:
        merged |= other
    return argparse.Namespace(**merged)


def _only_given(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Returns a parser made to return what is given and no defaults."""
    for action in parser._actions:
        if action.option_strings:
            action.default = argparse.SUPPRESS
    return parser


@dataclass(frozen=True)
class _Table:
    address: str
    name: str
    options: dict[str, Any]
    where: str


class _File:
    """What a file of TOML says.

    Args:
        path: of the file.
        parser: knows the options, and returns only what is given.

    Attributes:
        options: of all sources and of the run, by the parser's names.
        tables: the sources.

    Raises:
        StreamRPNError: it cannot be read, or is wrong.
    """

    def __init__(self, path: str, parser: argparse.ArgumentParser) -> None:
        import tomllib  # not at the top: most runs have no configuration

        self._path, self._parser = path, parser
        # Its own answer to a wrong value would be a usage that the file has no part in.
        parser.error = self._refuse  # type: ignore[method-assign]
        self._known = _by_name(parser._actions)
        groups = [g for g in parser._action_groups if g.title in OF_A_SOURCE]
        self._of_source = _by_name([action for g in groups for action in g._group_actions])
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StreamRPNError(f"the configuration {path} is no TOML: {error}") from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise StreamRPNError(f"the configuration {path} cannot be read: {why}") from error
        self._lines = text.splitlines()
        sources = content.pop("source", [])
        if not isinstance(sources, list) or not all(isinstance(one, dict) for one in sources):
            raise StreamRPNError(
                f"{self._at('source', None)}: a source is a table of its own, which begins with a "
                "line [[source]]"
            )
        self.options = self._options(content, self._known, None)
        self.tables = [self._table(one, index) for index, one in enumerate(sources)]
        names = [table.name for table in self.tables]
        for index, name in enumerate(names):
            if name and name in names[:index]:
                raise StreamRPNError(
                    f"{self._at('name', index)}: another source has the name {name!r} already"
                )

    def _table(self, content: dict[str, Any], index: int) -> _Table:
        options = dict(content)
        texts = {}
        for key in ("address", "name"):
            at, value = self._at(key, index), options.pop(key, "")
            if isinstance(value, int) and not isinstance(value, bool) and key == "address":
                value = str(value)  # of a camera
            if not isinstance(value, str) or (key in content and not value.strip()):
                raise StreamRPNError(f"{at}: {key!r} must be a text, got {_shown(value)}")
            texts[key] = self._filled(value, at)
        if not texts["address"]:
            raise StreamRPNError(
                f"{self._at('', index)}: this source has no address; give it one, as in "
                'address = "rtsp://camera/1"'
            )
        if re.search(r"[/\\\0]", texts["name"]) or texts["name"] in (".", ".."):
            raise StreamRPNError(
                f"{self._at('name', index)}: a name goes into names of files and must have no "
                f"slashes, got {texts['name']!r}"
            )
        return _Table(
            **texts,
            options=self._options(options, self._of_source, index),
            where=self._at("", index),
        )

    def _options(
        self, content: dict[str, Any], known: dict[str, argparse.Action], index: int | None
    ) -> dict[str, Any]:
        """Returns the values of options by the parser's names."""
        # Not at the top: with PyAV behind it, which `--help` does without.
        from stream_rpn.commands.wanted import check

        values: dict[str, Any] = {}
        for key, value in content.items():
            at = self._at(key, index)
            if key not in known:
                raise StreamRPNError(f"{at}: {self._unknown(key, known)}")
            self._where = f"{at}: {key!r}"
            arguments = [self._filled(a, at) for a in self._arguments(known[key], value)]
            found = vars(self._parser.parse_args(arguments))
            found.pop("sources", None)
            try:
                check(found)
            except StreamRPNError as error:
                raise StreamRPNError(f"{at}: {error}") from error
            values |= found
        return values

    def _unknown(self, key: str, known: dict[str, argparse.Action]) -> str:
        if key in self._known:
            return (
                f"{key!r} is an option of the whole run and no source's; it goes above the first "
                "[[source]]"
            )
        if key in ("address", "name", "sources"):
            return f"{key!r} belongs to a source, below a line [[source]]"
        names = [*known, *(("address", "name") if known is self._of_source else ("source",))]
        near = difflib.get_close_matches(key.replace("_", "-"), names, 1, 0.6)
        meant = f"did you mean {near[0]!r}?" if near else "`stream-rpn --help` lists the options"
        return f"there is no option {key!r}; {meant}"

    def _arguments(self, action: argparse.Action, value: Any) -> Iterator[str]:
        """Yields what the command line would say for a value."""
        option = _long(action)
        if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
            if not isinstance(value, bool):
                self._refuse(f"must be true or false, got {_shown(value)}")
            if value:
                yield option
        elif value == []:
            self._refuse("must not be an empty list; leave the line out")
        elif isinstance(value, list) and _is_repeatable(action) and not _is_row(value):
            for one in value:
                yield f"{option}={self._text(one)}"
        else:
            yield f"{option}={self._text(value)}"

    def _text(self, value: Any) -> str:
        if _is_row(value):
            return ",".join(map(self._text, value))
        if isinstance(value, bool) or not isinstance(value, str | int | float | time):
            self._refuse(f"must be a number or a text, got {_shown(value)}")
        return str(value)

    def _filled(self, text: str, at: str) -> str:
        """Returns a text with variables of the environment in it, whose values are secrets."""

        def value(found: re.Match[str]) -> str:
            if found[1] not in os.environ:
                raise StreamRPNError(
                    f"{at}: the environment has no variable {found[1]}; set it, as in "
                    f"{found[1]}=… stream-rpn --config {self._path}"
                )
            keep_secret(os.environ[found[1]])
            return os.environ[found[1]]

        filled = _VARIABLE.sub(value, text)
        if other := re.search(r"\$\{(?!STREAM_RPN_)(\w*)\}", text):
            raise StreamRPNError(
                f"{at}: ${{{other[1]}}} is not filled in; only variables of the environment whose "
                "names begin with STREAM_RPN_ are"
            )
        return filled

    def _refuse(self, message: str) -> NoReturn:
        message = re.sub(r"^argument [^:]*: ", "", message)
        colon = "" if message.startswith("must ") else ":"
        raise StreamRPNError(f"{self._where}{colon} {message}")

    def _at(self, key: str, index: int | None) -> str:
        """Returns file and line of a key, of all sources or in the table of one; "" is its head.

        TOML's reader tells no lines: the first that looks like the key's is it.
        """
        heads = [n for n, line in enumerate(self._lines) if _TABLE.match(line)]
        mine = [n for n in heads if _TABLE.match(self._lines[n])[1] == "source"]  # type: ignore[index]
        begin, end = 0, len(self._lines)
        if index is None:
            end = min(heads, default=end) if key != "source" else end
        elif index < len(mine):
            begin = mine[index]
            end = min((n for n in heads if n > begin), default=end)
        pattern = re.compile(rf"(.*[{{,]|\[*)\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        for number in range(begin, end):
            if key and pattern.match(self._lines[number]):
                begin = number
                break
        return f"{self._path}, line {begin + 1}"


def _by_name(actions: Sequence[argparse.Action]) -> dict[str, argparse.Action]:
    named = {name[2:]: a for a in actions for name in a.option_strings if name.startswith("--")}
    return {name: action for name, action in named.items() if name not in _NOT_IN_A_FILE}


def _long(action: argparse.Action) -> str:
    return next(name for name in action.option_strings if name.startswith("--"))


def _is_repeatable(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _is_row(value: Any) -> bool:
    """Tells whether a value is a list of numbers, which the command line separates by commas."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
