"""Text on its way to a terminal: names and reasons come out of files, and may hold what would steer one."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment


def plain(text: str) -> str:
    """One line, without the control characters that steer a terminal or break an SVG."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class PlainConsole(Console):
    """A console that steers the terminal itself, and lets no text do so."""

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=_visible(segment.text))


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else " " for c in text)
