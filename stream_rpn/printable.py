"""Names, numbers and sentences as a terminal may be given them; imports nothing."""

# What a terminal would obey, among them what turns the direction of writing or ends a line: names
# of files may hold any of it.
_CONTROLS = dict.fromkeys(
    [
        *(*range(32), *range(127, 160)),
        *(0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)),
    ],
    "�",
)
_BUT_LINES = {code: sign for code, sign in _CONTROLS.items() if chr(code) not in "\n\t"}


def printable(name: str) -> str:
    """Returns a name as it may be shown in a line: without control characters."""
    return name.translate(_CONTROLS)


def printable_lines(text: str) -> str:
    """Returns text of several lines as it may be shown: with no other control characters."""
    return text.translate(_BUT_LINES)


def counted(number: int, noun: str) -> str:
    """Returns "1 frame" or "1,000 frames"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
