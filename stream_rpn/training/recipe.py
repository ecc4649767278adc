"""The recipe of a run as a TOML file: all that it depends on but the machine and the output.

Keys are the attributes of `TrainConfig`, and those of `Augmentation` in a table of that name.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from stream_rpn.frame import StreamRPNError
from stream_rpn.sinks.place import put_whole
from stream_rpn.training.config import Augmentation, TrainConfig

TABLE = "augmentation"
# What another run with the same recipe has of its own.
LEFT_OUT = ("output", "device", "workers", "channels_last")

_KINDS = {
    name: kind
    for name, kind in get_type_hints(TrainConfig).items()
    if name not in (*LEFT_OUT, TABLE)
}
_AUGMENTATION_KINDS = get_type_hints(Augmentation)
_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple[str, ...]: "a list of strings",
    tuple[float, float]: "a list of two numbers",
}


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        path: of the file.
        config: values by the attributes of `TrainConfig`.
        augmentation: values by the attributes of `Augmentation`.
        lines: the lines, from 1 up, by attribute.
    """

    path: str
    config: dict[str, Any]
    augmentation: dict[str, Any]
    lines: dict[str, int]

    def where(self, name: str) -> str:
        """Returns "FILE:LINE: " of an attribute."""
        return f"{self.path}:{self.lines[name]}: " if name in self.lines else f"{self.path}: "


def write_recipe(config: TrainConfig, path: Path) -> None:
    """Writes the recipe of a run."""

    def rows(values: object, names: Mapping[str, Any]) -> list[str]:
        # Strings, numbers, booleans and lists look the same in JSON.
        return [
            f"{name} = {json.dumps(getattr(values, name), ensure_ascii=False)}" for name in names
        ]

    lines = [
        f"# How {Path(config.output).name} was made. The same once more:",
        f"#     stream-rpn train --config {path.name} -o other.safetensors",
        "# Files and folders are as seen from where the command is run.",
        *rows(config, _KINDS),
        "",
        f"[{TABLE}]",
        *rows(config.augmentation, _AUGMENTATION_KINDS),
    ]
    text = "\n".join(lines) + "\n"
    put_whole(str(path), text.encode(errors="surrogateescape"))


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe; attributes that are not in it are left to their defaults.

    Raises:
        StreamRPNError: it cannot be read, is no TOML, or has keys or values that mean nothing; with
            the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise StreamRPNError(f"the recipe '{path}' cannot be read ({reason})") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        reason, line = found.groups() if found else (str(error), str(text.count("\n") + 1))
        raise StreamRPNError(f"{path}:{line}: this is not TOML ({reason})") from error
    table = data.pop(TABLE, {})
    recipe = Recipe(str(path), {}, {}, _lines(text))
    if not isinstance(table, dict):
        raise StreamRPNError(f"{recipe.where(TABLE)}{TABLE} must be a table, [{TABLE}]")
    for values, kinds, result in (
        (data, _KINDS, recipe.config),
        (table, _AUGMENTATION_KINDS, recipe.augmentation),
    ):
        for name, value in values.items():
            if name not in kinds:
                raise StreamRPNError(recipe.where(name) + _unknown(name, kinds))
            result[name] = _value(recipe.where(name), name, value, kinds[name])
    return recipe


def _unknown(name: str, kinds: Mapping[str, Any]) -> str:
    if name in LEFT_OUT:
        return f"'{name}' is given on the command line, not in a recipe"
    near = difflib.get_close_matches(name, kinds, n=1)
    elsewhere = name in _AUGMENTATION_KINDS and f"it belongs under [{TABLE}]"
    hint = elsewhere or (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(kinds)}")
    return f"there is no option '{name}' here; {hint}"


def _value(where: str, name: str, value: Any, kind: Any) -> Any:
    """Returns a value of TOML as the attribute has it."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    if kind is float and number(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if isinstance(value, list):
        if kind == tuple[str, ...] and all(isinstance(part, str) for part in value):
            return tuple(value)
        if kind == tuple[float, float] and len(value) == 2 and all(map(number, value)):
            return tuple(map(float, value))
    raise StreamRPNError(f"{where}{name} must be {_NAMES[kind]}, got {value!r}")


def _lines(text: str) -> dict[str, int]:
    """Returns the line of every key and table of a TOML file; no name is in two tables."""
    keys = re.compile(r"""\s*\[?\s*["']?([\w-]+)["']?\s*[].=]""")
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if found := keys.match(line):
            lines.setdefault(found[1], number)
    return lines
