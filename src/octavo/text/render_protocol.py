"""What a pool and its helper processes say to each other, and what a process may take. Imports no Jinja.

A frame is a length (4 bytes, little-endian), then so many bytes of JSON. The first frame to a process has the
templates and the limits, each one after it a job; each is answered by one frame.
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What a helper process may take.

    `cpu_seconds` of its own for one job, `compile_seconds` (CPU too) for the templates: the kernel ends it there.
    `memory_bytes` that it may grow by (Linux). `wall_seconds` for a job are the last resort, for a process that is
    stopped or swapped out: its parent ends it.
    """

    cpu_seconds: float = 0.6  # with the cores busy otherwise, too, an answer within 2 s
    compile_seconds: float = 2.0  # some 10 times what the longest templates in use take
    wall_seconds: float = 15.0
    memory_bytes: int = 256 << 20  # twice what the longest prompt takes
