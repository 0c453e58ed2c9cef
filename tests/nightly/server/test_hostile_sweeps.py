"""The whole sweeps of hostile values and sizes, of which the suite runs a slice."""

import pytest

from tests.support.hostile import (
    BASES,
    CHAT,
    COMPLETIONS,
    huge_requests,
    send_huge_bodies,
    sweep_ignored_and_refused,
    sweep_no_json,
    sweep_wrong_values,
)

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("undisturbed")]


@pytest.mark.parametrize("path", BASES)
def test_every_field_with_every_wrong_value(hostile_server, path):
    sweep_wrong_values(hostile_server, path)


@pytest.mark.parametrize("path", BASES)
def test_every_field_with_what_is_no_json(hostile_server, path):
    sweep_no_json(hostile_server, path)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_ignored_or_refused_by_name(hostile_server, path):
    sweep_ignored_and_refused(hostile_server, path)


def test_what_is_huge_stalls_nobody_and_nothing_is_connected_to(secret_model, tmp_path):
    send_huge_bodies(secret_model, tmp_path / "audit", huge_requests())
