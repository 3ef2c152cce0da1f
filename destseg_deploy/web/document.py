"""One HTML file with everything in it: style, scripts and data. It asks the network for nothing.

The page itself is an ``.html`` file of this folder, which names what is put in its place:
``<!-- include style.css -->``, ``<!-- include drawing.js -->``, ``<!-- include data -->``. Scripts
read the data and write it as text, so no name of a file can become a part of the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

INCLUDE = re.compile(r"<!-- include ([\w.]+) -->")
TAGS = {
    ".css": "<style>\n{}</style>",
    ".js": "<script>\n{}</script>",
    "data": '<script type="application/json" id="data">{}</script>',
}


def document(page: str, data: Mapping[str, Any]) -> str:
    """Return a page of this folder with its style, scripts and data inside.

    Args:
        page: Name of the file, such as ``report.html``.
        data: What its script reads, as JSON has it; no NaN.
    """
    # "</script>" in a file's name would end the element.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")

    def content(match: re.Match[str]) -> str:
        name = match[1]
        kind = name[name.rfind(".") :] if "." in name else name
        return TAGS[kind].format(text if name == "data" else _read(name))

    return INCLUDE.sub(content, _read(page))


def _read(name: str) -> str:
    return files("destseg_deploy.web").joinpath(name).read_text("utf-8")
