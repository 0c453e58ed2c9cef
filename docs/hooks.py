"""MkDocs: the Markdown files at the repository's root as pages, with their links turned to where they lie there.

Knows file names and links, and no content.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

# The file at the root -> its page.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#]*)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of PAGES."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=page_text((ROOT / name).read_text(encoding="utf-8"))))
    return files


def page_text(text: str) -> str:
    """The text of a file at the root, as a page of `docs/`; code fences stay as they are."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(_moved, part) for part in parts)


def _moved(link: re.Match[str]) -> str:
    """The link as it must be within `docs/`; of what is not among the pages the text alone."""
    target, anchor = link["target"], link["anchor"] or ""
    if not target or target.startswith(("http://", "https://", "mailto:")):
        return link[0]
    if target in PAGES:
        return f"[{link['text']}]({PAGES[target]}{anchor})"
    if target.startswith("docs/"):
        return f"{link['mark']}[{link['text']}]({target.removeprefix('docs/')}{anchor})"
    return f"`{link['text']}`"
