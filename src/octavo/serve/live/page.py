"""The page at `/`: one file, and the policy that lets a browser run that file and nothing else.

Knows the file's bytes; knows nothing of what is in it but that it has one style and one script.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path


@cache
def load_page() -> tuple[bytes, str]:
    """The page, and the value of its Content-Security-Policy header. Read once."""
    page = (Path(__file__).parent / "index.html").read_bytes()
    rules = (
        "default-src 'none'",
        f"script-src {_source_hash(page, b'script')}",
        f"style-src {_source_hash(page, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return page, "; ".join(rules)


def _source_hash(page: bytes, element: bytes) -> str:
    """The hash that allows the text of the page's only `element`."""
    [text] = re.findall(rb"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text).digest()).decode('ascii')}'"
