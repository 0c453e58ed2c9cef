"""The verifier on engines that are said to be equal, or not: what it runs, what it finds, what it keeps alive."""

from types import SimpleNamespace

import pytest

from octavo.config import EngineConfig
from octavo.errors import EngineError
from octavo.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from octavo.tools.bench.workload import LengthRange
from octavo.tools.interrupt import Interrupt
from octavo.tools.verify import verifier as module
from octavo.tools.verify.verifier import Verifier, VerifyOptions

OPTIONS = VerifyOptions(num_prompts=2, prompt_len=LengthRange(20, 24), output_len=3, seed=7)


class EchoEngine:
    """Answers every request in one step, with its prompt's sum as the log-probability, plus `error(batch size)`."""

    def __init__(self, config: EngineConfig, error=lambda _: 0.0, finish_reason: str = "length") -> None:
        self.config, self.error, self.finish_reason = config, error, finish_reason
        self.tokenizer = SimpleNamespace(vocab_size=50, special_ids=frozenset())
        self.resolved = SimpleNamespace(arch=SimpleNamespace(vocab_size=50), device="gpu")
        self.live: dict[str, tuple] = {}
        self.num_requests = self.num_resets = 0

    def add_request(self, prompt, params) -> str:
        self.num_requests += 1
        request_id = str(self.num_requests)
        self.live[request_id] = (prompt, params)
        return request_id

    def step(self) -> list[RequestOutput]:
        outputs = []
        error = self.error(len(self.live))
        for request_id, (prompt, params) in reversed(self.live.items()):
            logprobs = [{5: Logprob(sum(prompt) + params.seed + error, 1, "")}] * params.max_tokens
            tokens = [5] * params.max_tokens
            completion = CompletionOutput(0, "", tokens, 0.0, logprobs=logprobs, finish_reason=self.finish_reason)
            metrics = RequestMetrics(0.0)
            outputs.append(RequestOutput(request_id, None, list(prompt), None, [completion], True, metrics))
        self.live = {}
        return outputs

    def has_unfinished_requests(self) -> bool:
        return bool(self.live)

    def discard_request(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    def get_stats(self) -> dict[str, int]:
        return {"preemptions": 0}


@pytest.fixture
def opened(monkeypatch) -> list[EchoEngine]:
    """The engines that a verifier has opened."""
    monkeypatch.setattr(module, "environment_of", lambda _: {})
    return []


def verifier(opened: list[EchoEngine], **fields) -> Verifier:
    def open_engine(config: EngineConfig) -> EchoEngine:
        opened.append(EchoEngine(config, **fields))
        return opened[-1]

    return Verifier(EngineConfig.from_fields(model="m"), OPTIONS, open_engine, Interrupt())  # type: ignore[arg-type]


def test_a_baseline_runs_each_request_alone(opened):
    found = verifier(opened)
    report = found.baseline()
    assert report["baseline"] == {"num_sequences": 4, "num_tokens": 12, "num_logprobs": 12}
    assert report["workload"] == {"num_prompts": 2, "prompt_len": [20, 24], "output_len": 3, "seed": 7}
    (engine,) = opened
    assert (engine.num_requests, engine.num_resets) == (4, 4)
    assert engine.config.cache_config.enable_prefix_caching
    assert engine.config.cache_config.num_blocks == 2 * 2 * 2 * 2  # all requests, twice over, of two blocks each
    assert len(found.requests) == 4


def test_equal_runs_are_equal_and_variations_that_did_nothing_are_not(opened):
    found = verifier(opened)
    found.baseline()
    results = {result.name: result for result in found.results()}
    assert all(result.comparison is not None and result.comparison.is_equal for result in results.values())
    assert {name for name, result in results.items() if result.failure} == {"prefix cache hit", "preempted"}
    assert results["prefix cache off"].is_equal
    assert not results["preempted"].is_equal


def test_one_engine_serves_what_has_the_same_configuration(opened):
    found = verifier(opened)
    found.baseline()
    names = [result.name for result in found.results()]
    assert len(opened) == 1 + len(set(names)) - 4  # the first four are the baseline's engine's
    assert [engine.config.scheduler_config.max_num_batched_tokens for engine in opened[2:4]] == [16, 64]
    assert not opened[1].config.cache_config.enable_prefix_caching


def test_a_difference_is_told_with_its_request(opened):
    found = verifier(opened, error=lambda size: 1e-9 if size > 1 else 0.0)
    found.baseline()
    first = next(found.results())
    assert not first.is_equal
    plain = first.as_json(found.requests)
    assert (plain["num_different"], plain["is_equal"], plain["failure"]) == (4, False, None)
    assert plain["first_difference"]["prompt"] == 0
    assert plain["first_difference"]["sampling"] == "greedy"
    assert 0 < plain["largest_gap"] < 2e-9


def test_a_request_that_ends_early_fails_the_baseline(opened):
    with pytest.raises(EngineError, match=r"ended early \(abort\)"):
        verifier(opened, finish_reason="abort").baseline()


def test_an_interrupt_leaves_nothing_queued(opened):
    found = verifier(opened)
    found._interrupt.is_set = True
    with pytest.raises(KeyboardInterrupt):
        found.baseline()
    assert not opened[0].live
