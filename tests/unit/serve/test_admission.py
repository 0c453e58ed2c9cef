"""serve.admission: the limits, and that a limit one client has reached does not keep others out."""

import pytest

from octavo.serve.admission import Admission
from octavo.serve.errors import ApiError


class Seats:
    """So many sequences run at a time; the others wait."""

    def __init__(self, num_seats: int = 4, max_active: int = 100, max_waiting: int = 10) -> None:
        self.refusals: list[ApiError] = []
        self.admission = Admission(max_active, max_waiting, lambda: min(num_seats, self.admission.num_sequences))

    def ask(self, client: str, num_sequences: int = 1) -> bool:
        self.admission.begin(client)
        try:
            self.admission.check(client, num_sequences)
        except ApiError as error:
            self.refusals.append(error)
            self.admission.end(client)
            return False
        self.admission.enter(client, num_sequences)
        return True


def test_one_client_fills_the_queue_and_no_more():
    seats = Seats()
    assert [seats.ask("a") for _ in range(20)] == [True] * 14 + [False] * 6
    assert seats.admission.num_waiting == 10
    assert seats.admission.num_refused == len(seats.refusals) == 6
    assert all(error.status == 429 for error in seats.refusals)
    assert all(1 <= int(error.headers["retry-after"]) <= 60 for error in seats.refusals)


def test_a_full_queue_has_a_place_for_who_has_less_than_his_share():
    seats = Seats()
    while seats.ask("flood"):
        pass
    assert [seats.ask("other") for _ in range(7)] == [True] * 5 + [False] * 2
    assert not seats.ask("flood")
    assert seats.ask("third")


def test_sequences_count_not_requests():
    seats = Seats()
    assert seats.ask("a", 8)
    assert not seats.ask("a", 12)
    assert seats.ask("a", 6)
    assert not seats.ask("b", 256)
    assert seats.ask("b", 5)


def test_a_large_request_is_taken_when_nobody_waits():
    seats = Seats()
    assert seats.ask("a", 200)
    assert not seats.ask("a")
    assert seats.ask("b"), "what a has brought is no reason to refuse b"


def test_too_many_requests_at_a_time_hold_for_who_has_his_share():
    seats = Seats(max_active=10, max_waiting=1000)
    assert sum(seats.ask("slow") for _ in range(30)) == 10
    assert sum(seats.ask("other") for _ in range(30)) == 5
    assert seats.ask("third")


def test_everything_that_leaves_is_forgotten():
    seats = Seats()
    for _ in range(3):
        assert seats.ask("a", 2)
    for _ in range(3):
        seats.admission.leave("a", 2)
        seats.admission.end("a")
    assert seats.admission.num_active == seats.admission.num_sequences == 0
    assert not seats.admission._active
    assert not seats.admission._sequences


@pytest.mark.parametrize(("num_finished", "low", "high"), [(0, 5, 5), (64, 1, 1)])
def test_retry_after_is_what_waits_at_the_recent_rate(num_finished, low, high):
    seats = Seats()
    while seats.ask("a"):
        pass
    for _ in range(num_finished):
        seats.admission.note_finish()
    with pytest.raises(ApiError) as caught:
        seats.admission.check("a")
    assert low <= int(caught.value.headers["retry-after"]) <= high
