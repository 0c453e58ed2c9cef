"""A request's times, as its caller gets them: differences of what its sequence has noted."""

from octavo.engine.sequence import Request
from octavo.outputs import RequestMetrics


def request_metrics(request: Request, added: float) -> RequestMetrics:
    """The metrics of a request so far. `added`: monotonic seconds of its arrival."""
    sequence = request.sequences[0]
    times, num_tokens = sequence.times, len(sequence.data.output_token_ids)
    decode = _since(times.first_token, times.last_token)
    return RequestMetrics(
        arrival=request.arrival_time,
        queue_time=_since(added, times.first_scheduled),
        time_to_first_token=_since(added, times.first_token),
        time_per_output_token=None if decode is None or num_tokens < 2 else decode / (num_tokens - 1),
        e2e=_since(added, times.finished),
        prefill_time=_since(times.first_scheduled, times.first_token),
        decode_time=decode,
        cached_tokens=sequence.num_cached_tokens,
        preemptions=sequence.num_preemptions,
    )


def _since(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
