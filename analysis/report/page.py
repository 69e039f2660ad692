"""From a template to one page that needs nothing else: styles, scripts and pictures are in it, and it may fetch nothing."""

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
MOST_SVG = 400_000  # bytes; of a larger picture the png is taken


def render(template: str, content: dict[str, Any], *, scripts: tuple[str, ...] = ()) -> str:
    """The page, with ``scripts`` before its own. No other script runs in it, whatever a record holds."""
    running = (*scripts, _text("page.js"))
    own = {"style": Markup(_text("page.css")), "scripts": [Markup(s) for s in running]}  # noqa: S704 - files of tokred, no records
    page = own | {"policy": policy(running)}
    return _environment().get_template(template).render(page | content)


def policy(scripts: tuple[str, ...]) -> str:
    """The page's Content-Security-Policy: these scripts by their digest, styles and pictures in the page, and no host."""
    digests = " ".join(f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}"
    return f"{rules}; base-uri 'none'; form-action 'none'"


def picture(svg: Path, png: Path) -> str:
    """As a data address: drawn as it is, and no script in it runs."""
    path, kind = (svg, "svg+xml") if svg.stat().st_size <= MOST_SVG else (png, "png")
    return f"data:image/{kind};base64,{b64encode(path.read_bytes()).decode()}"


def _visible(value: Any) -> Any:
    """Without characters that steer: controls, and those that turn the direction of the text."""
    if type(value) is not str:
        return value
    return "".join(char if char.isprintable() or char == "\n" else " " for char in value)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
