"""How much is tried: little in the suite, ten times as much, with new seeds, at night."""

import os

IS_NIGHT = os.environ.get("HYPOTHESIS_PROFILE") == "explore"


def examples(count: int) -> int:
    """Examples of a property: `count` in the suite."""
    return count * 10 if IS_NIGHT else count
