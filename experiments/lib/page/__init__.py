"""HTML files that need nothing else: styles, script and data inside, no network.

Text of chunks and memories is data that nobody has checked. In markup it goes through `escape`;
data for a script goes in as JSON in which no character can end the script element. The content
security policy lets nothing but the page's own script run and nothing be loaded.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def read(name: str) -> str:
    """A file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def fill_template(name: str, **texts: str) -> str:
    """A file of this folder with its $names replaced by texts, which are escaped."""
    return Template(read(name)).substitute({k: escape(v) for k, v in texts.items()})


def script_json(value: Any) -> str:
    """JSON for inside a script element, where "<", ">" and "&" are written as escapes.

    Raises ValueError for NaN and infinity, which JSON does not have: give None.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def page(title: str, body: str, style: str, script: str = "", data: Any = None) -> str:
    """A whole document. `body` is markup; `data` is in the element #data when `script` runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    run = f"script-src 'sha256-{digest}'; " if script else ""
    policy = f"default-src 'none'; {run}style-src 'unsafe-inline'; img-src data:"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>\n<style>{read('common.css')}{style}</style>\n</head>",
        f"<body>\n{body}",
    ]
    if script:
        parts.append(f'<script type="application/json" id="data">{script_json(data)}</script>')
        parts.append(f"<script>{script}</script>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def frame(path: Path, height: int = 700) -> str:
    """A written page as markup for a notebook, the page whole inside it; height in pixels."""
    inside = escape(path.read_text(encoding="utf-8"))
    return f'<iframe srcdoc="{inside}" style="width: 100%; height: {height}px; border: 0"></iframe>'
