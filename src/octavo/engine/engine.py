"""The engine: the order of the four verbs, and nothing else."""

import logging
from collections.abc import Callable

from octavo.engine.batch_builder import pack
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.runner import Runner
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import EngineRequest, Event, Packed, Plan, Sampled, Sequence, SequenceStatus

logger = logging.getLogger(__name__)


class Engine:
    """Plans, packs, runs and commits steps. One thread owns it."""

    def __init__(self, scheduler: Scheduler, runner: Runner, timer: PhaseTimer) -> None:
        block_size = scheduler.tables.block_size
        self.scheduler = scheduler
        self.runner = runner
        self.timer = timer
        self.num_steps = 0
        self.last_plan: Plan | None = None  # of the newest step
        self._plan: Callable[[], Plan] = timer.timed("plan", scheduler.plan)
        self._pack: Callable[[Plan], Packed] = timer.timed("pack", lambda plan: pack(plan, block_size))
        self._commit: Callable[[Plan, Sampled], list[Event]] = timer.timed("commit", scheduler.commit)

    def step(self) -> list[Event]:
        """One step over every sequence that can run; its events. A step that raises costs only the guilty request."""
        plan = self._plan()
        if not plan.rows:
            return []
        self.num_steps += 1
        self.last_plan = plan
        try:
            sampled = self.runner.run(self._pack(plan))
        except Exception as error:
            logger.warning("a step of %d rows failed", len(plan.rows), exc_info=error)
            return self.scheduler.fail(plan, error)
        except BaseException:  # an interrupt: nobody's fault, everything can be computed again
            self.scheduler.undo(plan)
            raise
        return self._commit(plan, sampled)

    def add(self, request: EngineRequest) -> Sequence:
        """Queue a request: its sequence. Raises ContextLengthError or QueueFullError."""
        return self.scheduler.add(request)

    def finish(self, sequence: Sequence, reason: SequenceStatus, keep: int | None = None) -> None:
        """End a sequence from outside; `keep` drops all but its first output tokens (a stop string was found there)."""
        self.scheduler.finish(sequence, reason)
        if keep is not None:
            sequence.data.truncate_output(keep)

    def check(self, request: EngineRequest) -> None:
        """Raise ContextLengthError for a request that can never run. Changes nothing: any thread may ask."""
        self.scheduler.check_fits(request)

    def hold(self, sequence: Sequence, *, is_held: bool) -> None:
        """Keep a sequence from running while nobody takes what it makes, or let it go on."""
        (self.scheduler.hold if is_held else self.scheduler.resume)(sequence)

    def has_work(self) -> bool:
        """Whether a step would run anything (a sequence that is held does not)."""
        return self.scheduler.has_work

    def has_unfinished(self) -> bool:
        """Whether any sequence still has something to do."""
        return bool(self.scheduler.sequences)

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix."""
        for pool in self.scheduler.tables.pools:
            pool.reset()
