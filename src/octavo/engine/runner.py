"""The runner: one forward of the model over a packed step, then tokens and logprobs from the rows that want them.

Knows the model and the KV cache as things to call; knows no sequence and no schedule.
"""

from octavo.cache.kv import KVCache
from octavo.engine import sampler
from octavo.engine.phase_timer import PhaseTimer
from octavo.engine.sampler import TILE, Outcome, rules_of
from octavo.engine.sequence import Packed, RowResult, Sampled, TokenLogprobs
from octavo.errors import OctavoError
from octavo.models.decoder import Decoder
from octavo.ops.interface import Ops, Tensor
from octavo.ops.sampling import SampleRules


class Runner:
    """Computes what a step was planned to compute. `num_forwards` counts forwards of the model: one a step."""

    def __init__(self, model: Decoder, kv: KVCache, ops: Ops, timer: PhaseTimer) -> None:
        self.model = model
        self.kv = kv
        self.ops = ops
        self.timer = timer
        self.num_forwards = 0

    def run(self, packed: Packed) -> Sampled:
        """One step. Raises whatever the device raises; a row with bad numbers is an error in its own result only."""
        self.num_forwards += 1
        with self.timer.phase("sample"):  # what can be: after a forward the processor's caches hold weights, no host
            rules = [rules_of(packed.draws[first : first + TILE]) for first in range(0, len(packed.draws), TILE)]
        with self.timer.phase("run"):
            hidden = self.model.forward(packed.batch, self.kv.layers)
        with self.timer.phase("sample"):
            return _sampled(packed, self._outcomes(packed, rules, hidden))

    def _outcomes(self, packed: Packed, rules: list[SampleRules], hidden: Tensor) -> list[Outcome]:
        """One outcome for each of `batch.sample_rows`: first the draws, then the scores, in tiles of rows."""
        rows, num_draws = packed.batch.sample_rows, len(packed.draws)
        outcomes: list[Outcome] = []
        for first, of_tile in zip(range(0, num_draws, TILE), rules, strict=True):
            last = min(first + TILE, num_draws)
            logits = self.model.logits(hidden, rows[first:last])
            outcomes += sampler.sample(self.ops, logits, packed.draws[first:last], of_tile)
        for first in range(0, len(packed.targets), TILE):
            last = min(first + TILE, len(packed.targets))
            logits = self.model.logits(hidden, rows[num_draws + first : num_draws + last])
            outcomes += sampler.score(self.ops, logits, packed.targets[first:last], packed.num_logprobs[first:last])
        return outcomes


def _sampled(packed: Packed, outcomes: list[Outcome]) -> Sampled:
    """The outcomes sorted back to the plan's rows; one bad outcome spoils its row, no other."""
    tokens: list[list[TokenLogprobs]] = [[] for _ in range(packed.num_rows)]
    prompt: list[list[TokenLogprobs]] = [[] for _ in range(packed.num_rows)]
    errors: list[OctavoError | None] = [None] * packed.num_rows
    places = [(row, tokens) for row in packed.draw_rows] + [(row, prompt) for row in packed.score_rows]
    for (row, where), outcome in zip(places, outcomes, strict=True):
        if isinstance(outcome, OctavoError):
            errors[row] = outcome
        else:
            where[row].append(outcome)
    return Sampled(
        tuple(
            RowResult(tuple(t), tuple(p)) if error is None else RowResult(error=error)
            for t, p, error in zip(tokens, prompt, errors, strict=True)
        )
    )
