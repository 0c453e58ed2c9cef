"""request.Request: what is known of one request while it runs. (Whole requests: test_llm_engine.)"""

from octavo import Request, RequestStatus, SequenceStatus
from octavo.engine.sequence import Event, TokenLogprobs
from octavo.errors import EngineError
from octavo.params import SamplingParams
from octavo.request import request_metrics
from tests.support.outputs import CharTokenizer
from tests.support.scheduler_harness import Harness, Setup
from tests.support.scheduler_workload import NEVER_STOPS, prompt_of


class Tokenizer(CharTokenizer):
    def decode(self, ids, *, skip_special=True, spaces_between_special=True) -> str:
        return super().decode(ids, skip_special=skip_special)

    def decode_token(self, token_id: int) -> str:
        return chr(token_id)


def ask(harness: Harness, *prompt: int, params: SamplingParams = NEVER_STOPS) -> Request:
    answer = harness.ask([*prompt] or prompt_of(5), 8, params.resolved({}))
    request = Request(answer.request, Tokenizer())
    assert request.status is RequestStatus.WAITING
    request.sequences.append(answer.sequence)
    return request


def tokens(text: str) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(ord(char), -0.5, 1, ((ord(char), -0.5), (65, -2.0))) for char in text)


def test_a_request_is_the_sum_of_its_sequences():
    harness = Harness(Setup(num_seqs=1))
    first, second = ask(harness), ask(harness)
    assert first.status is second.status is RequestStatus.WAITING
    harness.step()
    assert (first.status, second.status) == (RequestStatus.RUNNING, RequestStatus.WAITING)
    assert first.get_seqs(SequenceStatus.RUNNING) == first.get_seqs() == first.sequences
    assert second.get_seqs(SequenceStatus.RUNNING) == []
    assert first.sequences[0].id == f"{first.id}-0"
    harness.run()
    assert first.status is RequestStatus.FINISHED


def test_what_is_asked_can_be_read():
    request = ask(Harness())
    asked = request.asked
    assert (request.prompt, request.params, request.arrival_time) == (asked.prompt, asked.params, asked.arrival_time)


def test_text_and_logprobs_grow_and_are_cut_at_a_stop_string():
    request = ask(Harness(), 5, 6, params=SamplingParams(max_tokens=8, stop="cd", logprobs=1))
    sequence = request.sequences[0]
    assert request.take(Event(sequence, tokens("ab"))) is None
    found = request.take(Event(sequence, tokens("cde")))
    assert (found.stop, found.num_tokens) == ("cd", 4)
    [completion] = request.output().outputs
    assert (completion.text, completion.cumulative_logprob) == ("ab", -2.0)
    assert [sorted(at) for at in completion.logprobs] == [[65, ord(char)] for char in "abcd"]
    assert completion.logprobs[0][65].rank == 2


def test_what_was_held_back_comes_out_at_the_end():
    request = ask(Harness(), 5, 6, params=SamplingParams(max_tokens=8, stop="cd"))
    request.take(Event(request.sequences[0], tokens("abc")))
    assert request.output().outputs[0].text == "ab"
    request.close()
    assert request.output().outputs[0].text == "abc"


def test_an_error_is_handed_on():
    request, error = ask(Harness()), EngineError("it broke")
    request.take(Event(request.sequences[0], status=SequenceStatus.FINISHED_ERROR, error=error))
    assert request.output().outputs[0].error is error


def test_times_are_differences():
    request = ask(Harness())
    times = request.sequences[0].times
    assert request_metrics(request.asked, request.sequences[0]).queue_time is None
    times.first_scheduled, times.first_token, times.last_token, times.finished = 1.0, 3.0, 7.0, 8.0
    request.sequences[0].data.output_token_ids += [1, 2, 3]
    found = request_metrics(request.asked, request.sequences[0])
    assert (found.queue_time, found.time_to_first_token, found.e2e) == (1.0, 3.0, 8.0)
    assert (found.prefill_time, found.decode_time, found.time_per_output_token) == (2.0, 4.0, 2.0)
