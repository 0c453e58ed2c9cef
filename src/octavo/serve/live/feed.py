"""The live feed of the page: the engine's state as small JSON frames, for as long as there is a viewer.

Knows the engine thread (its `observer` and `send`) and what a snapshot holds; knows no HTTP: the route adds the SSE
framing. Without viewers the engine has no observer and nothing here runs. Nothing is queued for a viewer: it has one
event, and when it reads it gets the newest state and the steps that it missed, so a slow viewer costs no memory.

A frame is one JSON object:

    time, age      unix seconds of the state; how many seconds old it was when the frame was made
    requests       running ones first, at most 200: {id, owner, state, prompt, cached, computed, output, max_output,
                   tokens_per_second, preemptions}. Counts are tokens. A state is "running", "waiting", or "held"
                   where the caller reads nothing.
    totals         what `get_stats` counts (blocks_*, running, waiting, hit_rate, preemptions, generation_tokens,
                   seconds by phase, …) and tokens_per_second, all requests together
    map            only where it has changed: {blocks, blocks_per_cell, block_size, codes}. `codes` is base64, a byte a
                   cell: 0 free, 1 cached, 2 shared (more than one owner), 3 + k used by owner k, 255 used by an owner
                   without a number. Above 8,192 blocks a cell stands for several neighbors and shows the largest of
                   their codes: it is free only where all of them are.
    steps          new ones, oldest first: {step, tokens {prompt, decode, recompute}, seconds {plan, pack, run, sample,
                   commit}, num_rows, rows [[k, kind, tokens], …] (at most 256)}
    owners         {k: request id} of the rows in this frame
    missed         steps since this viewer's last frame that are not shown: it was slow, or they were too many

`k` is a small number that a sequence keeps from its first step to its end; -1 where all 252 are taken.
"""

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from time import monotonic
from typing import TypedDict

import numpy as np
import orjson

from octavo.engine_thread import EngineThread, post
from octavo.serve.live.snapshot import MAX_STEPS, LiveSnapshot, SnapshotRecorder, StepLine

POLL = 0.25  # seconds without news after which the engine is asked, unless it was idle
HEARTBEAT = 2.0  # seconds between two frames where nothing happens
MAX_STEPS_IN_FRAME = 64
MAX_CELLS = 8192


class BlockMap(TypedDict):
    """The block map of a frame."""

    blocks: int
    blocks_per_cell: int
    block_size: int
    codes: str


@dataclass(slots=True, eq=False)
class _Viewer:
    """One reader of the feed: the event that wakes it, and how much it has been sent."""

    updated: asyncio.Event = field(default_factory=asyncio.Event)
    num_steps: int = 0  # of all that were recorded
    map_version: int = 0


class LiveFeed:
    """Frames for any number of viewers. All methods run on the event loop's thread."""

    def __init__(self, engine_thread: EngineThread) -> None:
        self._engine_thread = engine_thread
        self._viewers: set[_Viewer] = set()
        self._recorder: SnapshotRecorder | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._is_closed = False
        self._reset()

    @property
    def num_viewers(self) -> int:
        """How many viewers there are."""
        return len(self._viewers)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames for one viewer, until it leaves or `close` is called. Close the iterator (`aclosing`)."""
        viewer = _Viewer()
        self._join(viewer)
        try:
            while True:
                await viewer.updated.wait()
                viewer.updated.clear()
                if self._is_closed:
                    return
                if self._snapshot is not None:
                    yield self._frame(viewer, self._snapshot)
        finally:
            self._leave(viewer)

    def close(self) -> None:
        """End every viewer's frames: the server is going down."""
        self._is_closed = True
        self._wake_viewers()

    def _join(self, viewer: _Viewer) -> None:
        self._viewers.add(viewer)
        if self._is_closed or self._snapshot is not None:
            viewer.updated.set()
        if self._recorder is None:
            loop = asyncio.get_running_loop()
            self._recorder = SnapshotRecorder(lambda recorder, snapshot: post(loop, self._receive, recorder, snapshot))
            self._engine_thread.observer = self._recorder.after_step
            self._ticker = loop.create_task(self._tick())
            self._request_snapshot()

    def _leave(self, viewer: _Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and self._ticker is not None:
            self._engine_thread.observer = None
            self._ticker.cancel()
            self._recorder = self._ticker = None
            self._reset()

    def _reset(self) -> None:
        """Reset: the next viewer is sent nothing that was recorded before it came."""
        self._snapshot: LiveSnapshot | None = None
        self._steps: deque[StepLine] = deque(maxlen=MAX_STEPS)
        self._num_steps = 0
        self._map: BlockMap | None = None
        self._map_version = 0
        self._is_requested = False
        self._last_frame = monotonic()

    def _request_snapshot(self) -> None:
        """Request a snapshot, unless one is on its way."""
        if self._recorder is not None and not self._is_requested:
            self._is_requested = True
            self._engine_thread.send(self._recorder.take_snapshot)

    async def _tick(self) -> None:
        """Where no step causes a frame: a snapshot of an engine that may have gone idle, and a heartbeat."""
        while True:
            await asyncio.sleep(POLL)
            snapshot, now = self._snapshot, monotonic()
            if snapshot is None or now >= max(snapshot.due, snapshot.taken + (HEARTBEAT if snapshot.is_idle else POLL)):
                self._request_snapshot()
            if now - self._last_frame >= HEARTBEAT:  # the engine is in a long step, or gone
                self._wake_viewers()

    def _receive(self, recorder: SnapshotRecorder, snapshot: LiveSnapshot) -> None:
        if recorder is not self._recorder:  # from before the last viewer left
            return
        self._snapshot, self._is_requested = snapshot, False
        self._steps += snapshot.steps
        self._num_steps += len(snapshot.steps)
        block_map = _encode_map(snapshot)
        if block_map != self._map:
            self._map = block_map
            self._map_version += 1
        self._wake_viewers()

    def _wake_viewers(self) -> None:
        self._last_frame = monotonic()
        for viewer in self._viewers:
            viewer.updated.set()

    def _frame(self, viewer: _Viewer, snapshot: LiveSnapshot) -> bytes:
        """The newest state, and the steps that this viewer has not seen yet."""
        num_new = self._num_steps - viewer.num_steps
        steps = list(self._steps)[-min(num_new, MAX_STEPS_IN_FRAME) :] if num_new else []
        frame: dict[str, object] = {
            "time": round(snapshot.unix_time, 3),
            "age": round(monotonic() - snapshot.taken, 3),
            "requests": snapshot.requests,
            "totals": snapshot.totals,
            "steps": [step | {"rows": [(k, kind, num) for k, _, kind, num in step["rows"]]} for step in steps],
            "owners": {str(k): name for step in steps for k, name, _, _ in step["rows"]},
            "missed": num_new - len(steps),
        }
        if viewer.map_version != self._map_version:
            frame["map"] = self._map
        viewer.num_steps, viewer.map_version = self._num_steps, self._map_version
        return orjson.dumps(frame)


def _encode_map(snapshot: LiveSnapshot) -> BlockMap:
    codes = snapshot.block_codes()
    per_cell = -(-len(codes) // MAX_CELLS)
    if per_cell > 1:
        codes = np.pad(codes, (0, -len(codes) % per_cell)).reshape(-1, per_cell).max(axis=1)
    return {
        "blocks": snapshot.totals["blocks_total"],
        "blocks_per_cell": per_cell,
        "block_size": snapshot.block_size,
        "codes": b64encode(codes.tobytes()).decode("ascii"),
    }
