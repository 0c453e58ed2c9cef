"""Where Octavo keeps what it fetches and makes: `$OCTAVO_HOME`."""

import os
from pathlib import Path


def home_directory() -> Path:
    """The directory, which need not exist: `$OCTAVO_HOME`, by default ~/.cache/octavo.

    Raises RuntimeError for a user without a home.
    """
    return Path(os.environ.get("OCTAVO_HOME") or "~/.cache/octavo").expanduser()
