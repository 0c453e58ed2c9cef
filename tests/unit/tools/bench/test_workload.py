"""What a benchmark asks for: requests that are generated from a seed, and requests from a file."""

import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import RequestError
from octavo.tools.bench.workload import (
    FileWorkload,
    Job,
    LengthRange,
    WorkloadSpec,
    generate_jobs,
    non_special_ids,
    read_workload,
)

length_ranges = st.tuples(st.integers(1, 40), st.integers(0, 40)).map(lambda pair: LengthRange(pair[0], sum(pair)))
specs = st.builds(
    lambda count, prompt_len, output_len, share, rate, seed: WorkloadSpec(
        count, prompt_len, output_len, int(prompt_len.low * share), rate, seed
    ),
    st.integers(1, 30), length_ranges, length_ranges, st.floats(0, 1), st.none() | st.floats(0.01, 1000),
    st.integers(0, 2**31 - 1),
)  # fmt: skip


@given(specs, st.sets(st.integers(0, 300), min_size=1))
def test_generated_requests_are_what_was_asked_for(shape, ids):
    jobs = generate_jobs(shape, sorted(ids))
    assert len(jobs) == shape.num_requests
    assert all(shape.prompt_len.low <= len(job.prompt) <= shape.prompt_len.high for job in jobs)
    assert all(shape.output_len.low <= job.max_tokens <= shape.output_len.high for job in jobs)
    assert {token for job in jobs for token in job.prompt} <= ids
    assert len({job.prompt[: shape.shared_prefix] for job in jobs}) == 1
    arrivals = [job.arrival for job in jobs]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert all(math.isfinite(arrival) for arrival in arrivals)
    if shape.arrival_rate is None:
        assert set(arrivals) == {0.0}
    assert jobs == generate_jobs(shape, sorted(ids))


def test_seeds_and_rates_are_independent():
    def jobs(seed: int, rate: float | None) -> list[Job]:
        return generate_jobs(WorkloadSpec(50, LengthRange(8, 64), LengthRange(1, 9), 4, rate, seed), range(1000))

    assert [job.prompt for job in jobs(0, None)] == [job.prompt for job in jobs(0, 3.0)]
    assert not {job.prompt for job in jobs(0, None)} & {job.prompt for job in jobs(1, None)}
    assert len({job.prompt[4:] for job in jobs(0, None)}) == 50
    assert len({len(job.prompt) for job in jobs(0, None)}) > 10


def test_arrivals_come_at_the_rate():
    jobs = generate_jobs(WorkloadSpec(4000, LengthRange(1, 1), LengthRange(1, 1), 0, 8.0), [7])
    gaps = [after.arrival - before.arrival for before, after in pairwise(jobs)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 8, rel=0.1)  # an exponential's deviation is its mean


def test_no_special_tokens_and_no_empty_vocabulary():
    assert non_special_ids(6, frozenset({0, 4, 99})) == [1, 2, 3, 5]
    with pytest.raises(RequestError, match="not special"):
        generate_jobs(WorkloadSpec(1, LengthRange(1, 1), LengthRange(1, 1)), [])


def test_a_prefix_is_no_longer_than_the_shortest_prompt():
    with pytest.raises(RequestError, match=r"^9 tokens .* 8:12"):
        WorkloadSpec(1, LengthRange(8, 12), LengthRange(1, 1), 9)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_workload_file(tmp_path):
    path = tmp_path / "work.jsonl"
    path.write_text(
        '{"prompt": "hi", "max_tokens": 3, "arrival": 1.5}\n\n{"prompt_token_ids": [4, 5], "max_tokens": 1}\n'
    )
    assert read_workload(path) == FileWorkload(path, (Job((4, 5), 1, 0.0), Job("hi", 3, 1.5)))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("[]", "not a JSON object"),
        ('{"max_tokens": 1}', "either 'prompt' or"),
        ('{"prompt": "a", "prompt_token_ids": [1], "max_tokens": 1}', "either 'prompt' or"),
        ('{"prompt": "", "max_tokens": 1}', "prompt=''"),
        ('{"prompt": null, "max_tokens": 1}', "prompt=None"),
        ('{"prompt": [1], "max_tokens": 1}', "prompt=[1]"),
        ('{"prompt_token_ids": [], "max_tokens": 1}', "prompt_token_ids=[]"),
        ('{"prompt_token_ids": [-1], "max_tokens": 1}', "prompt_token_ids=[-1]"),
        ('{"prompt_token_ids": [true], "max_tokens": 1}', "prompt_token_ids=[True]"),
        ('{"prompt": "a"}', "max_tokens=None"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens=0"),
        ('{"prompt": "a", "max_tokens": 1.5}', "max_tokens=1.5"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": -1}', "arrival=-1"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": NaN}', "arrival=nan"),
        ('{"prompt": "a", "max_tokens": 1, "arrival": "now"}', "arrival='now'"),
        ('{"prompt": "a", "max_tokens": 1, "temperature": 1}', "'temperature'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "work.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(RequestError) as error:
        read_workload(path)
    assert "work.jsonl, line 2: " in str(error.value)
    assert words in str(error.value)


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name, words in (("empty", "holds no requests"), ("none", "No such file")):
        with pytest.raises(RequestError, match=f".*{name}.*{words}"):
            read_workload(tmp_path / name)
