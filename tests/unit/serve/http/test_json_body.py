"""serve.http.json_body: strict JSON against the standard parser, and the reading of a body piece by piece."""

import asyncio
import json
import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from octavo.serve.errors import ApiError
from octavo.serve.http.json_body import MAX_DEPTH, MAX_DIGITS, parse_json, read_body, read_json
from tests.support.counts import examples

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**398), 10**398),
    st.floats(allow_nan=False, allow_infinity=False), TEXT,
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
SURROGATES = st.characters(categories=("Cs",))


def refusal(body):
    """The error that `body` is refused with: a 400 with our code and a message that can be sent."""
    with pytest.raises(ApiError) as caught:
        parse_json(body)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)
    shown = json.loads(error.body())["error"]
    assert shown["type"] == "invalid_request_error"
    assert shown["message"]
    return str(error)


def parsed(body):
    """The object, or None where `body` is refused as it should be."""
    try:
        return parse_json(body)
    except ApiError as error:
        is_ours = (error.status, error.code) == (400, "invalid_json")
    assert is_ours
    return None


@settings(max_examples=examples(50))
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_every_object_survives(value, is_ascii, indent):
    body = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    found = parse_json(body)
    assert repr(found) == repr(value)  # repr: -0.0 is not 0, True is not 1, and the order is kept


@settings(max_examples=examples(125))
@given(
    st.binary(max_size=60) | TEXT.map(str.encode) | st.text('{}[]":,\\u0d8e-+.1tfnalsr ', max_size=40).map(str.encode)
)
@example(b"")
@example(b"{}")
@example(b"null")
@example(b'\xef\xbb\xbf{"a": 1}')
def test_whatever_comes_is_an_object_or_a_400(body):
    try:
        expected = json.loads(body.decode())
    except ValueError:
        expected = None
    found = parsed(body)
    if found is not None:
        assert isinstance(found, dict)
        assert found == expected


@settings(max_examples=examples(50))
@given(OBJECTS, st.randoms(use_true_random=False))
def test_damaged_json_is_refused_where_the_oracle_refuses_it(value, random):
    body = bytearray(json.dumps(value, ensure_ascii=False).encode())
    for _ in range(random.randint(1, 3)):
        place = random.randint(0, len(body))
        body[place : place + 1] = random.choice([b"", b"\xff", b'"', b",", b"}", b"\\", b"\x00", b"[", b"0"])
    try:
        expected = json.loads(body.decode())
    except ValueError:
        refusal(bytes(body))
        return
    assert parsed(bytes(body)) in (None, expected)


@settings(max_examples=examples(30))
@given(OBJECTS.filter(bool), st.randoms(use_true_random=False))
def test_a_key_twice_is_refused_at_every_level(value, random):
    key = random.choice(list(value))
    text = json.dumps(value)
    twice = "{" + text[1:-1] + ", " + json.dumps(key) + ": 1}"
    for body in (twice, f'{{"a": [{{"b": {twice}}}]}}'):
        assert "twice" in refusal(body.encode())


def test_a_key_twice_is_found_in_linear_time():
    keys = ",".join(f'"{number}":0' for number in range(100_000))
    begin = time.process_time()
    refusal(f'{{{keys},"99999":1}}'.encode())
    assert time.process_time() - begin < 5  # a search for each key: 5e9 comparisons, minutes


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e309", "9" * 309 + ".0", "9" * (MAX_DIGITS + 1),
               "-" + "9" * MAX_DIGITS, "0." + "1" * MAX_DIGITS, "9" * 5000, "9" * 100_000, "1e" + "9" * 1000]
)  # fmt: skip
def test_numbers_that_are_not_finite_or_too_long(number):
    for body in (f'{{"a":{number}}}', f'{{"a":[[{number}]]}}', number):
        refusal(body.encode())


@pytest.mark.parametrize(
    "number", ["1e308", "-1.7976931348623157e308", "5e-324", "1e-400", "-0.0", "-0", "9" * MAX_DIGITS]
)
def test_numbers_that_can_be_held(number):
    found = parse_json(f'{{"a":{number}}}'.encode())["a"]
    assert repr(found) == repr(json.loads(number))
    assert isinstance(found, int) or math.isfinite(found)


@pytest.mark.parametrize(("begin", "end"), [('{"a":', "}"), ("[", "]")])
def test_depth(begin, end):
    for depth in (1, 2, MAX_DEPTH - 1):
        body = f'{{"a":{begin * depth}0{end * depth}}}'
        assert parse_json(body.encode()) == json.loads(body)
    for depth in (MAX_DEPTH, MAX_DEPTH + 1, 500, 990, 1100, 100_000, 1_000_000):
        assert "deep" in refusal(f'{{"a":{begin * depth}0{end * depth}}}'.encode())
        refusal(f'{{"a":{begin * depth}'.encode())
        refusal((begin * depth).encode())


@given(SURROGATES, TEXT, TEXT)
def test_half_a_surrogate_pair_is_refused(half, before, after):
    raw = f'{{"a":"{half}"}}'.encode("utf-8", "surrogatepass")
    assert "UTF-8" in refusal(raw)
    escape = f"\\u{ord(half):04x}"
    for spelled in (escape, escape.upper().replace("U", "u")):
        around = json.dumps(before)[1:-1] + spelled + "." + json.dumps(after)[1:-1]
        for body in (f'{{"a":"{around}"}}', f'{{"{around}":1}}', f'{{"x":[{{"y":["{around}"]}}]}}'):
            assert "surrogate" in refusal(body.encode())


def test_whole_pairs_and_escaped_backslashes_are_text():
    assert parse_json(rb'{"a":"\ud83d\ude00","b":"\\ud800"}') == {"a": "\U0001f600", "b": "\\ud800"}


@settings(max_examples=examples(125))
@given(
    st.lists(
        st.sampled_from([r"\ud83d", r"\uDE00", r"\uD7ff", r"\ue000", r"\\", r"\n", "ud83d", r"\"", "x"]), max_size=9
    )
)
def test_pairs_are_paired_as_the_oracle_pairs_them(parts):
    body = '{"a":"' + "".join(parts) + '"}'
    expected = json.loads(body)
    is_text = not any("\ud800" <= char <= "\udfff" for char in expected["a"])
    assert parsed(body.encode()) == (expected if is_text else None)


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"a":1}x', b'{"a":1}{"a":1}', b'{"a":1},', b"{'a':1}",
        b'{"a":1,}', b'{"a":"\n"}', b'{"a":"\x00"}', b'{"a":01}', b'{"a":.5}', b'{"a":0x10}', b'{"a":1_0}', b'{"a"}',
        b"{a:1}", b'{"a":"\\x41"}', b'{"a":tru}', b'{"a":+1}', b'{"a":"\xc0\xaf"}', b'{"a":"\xf5\x80\x80\x80"}',
        b'{"a":"\xed\xa0\x80"}', b'/**/{"a":1}', '{"a":\uff11}'.encode(), b"\x1f\x8b\x08\x00", b'{"a":1}\x00',
    ],
)  # fmt: skip
def test_what_is_not_strict_json(body):
    refusal(body)


@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"a"', b"[]", b'[{"a":1}]', b"1.5"])
def test_what_is_no_object(body):
    assert "object" in refusal(body)


def test_the_message_holds_no_half_pair_and_little_of_the_body():
    message = refusal(b'{"\\ud800' + b"k" * 5000 + b'":1,"\\ud800' + b"k" * 5000 + b'":1}')
    assert len(message) < 300
    message.encode()


# --- reading ----------------------------------------------------------------------------------------------------------


class Peer:
    """What an ASGI server would hand on; counts how often it was asked."""

    def __init__(self, *pieces, last=None, pause=0.0):
        self.messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        self.last, self.pause, self.num_asked = last, pause, 0

    async def __call__(self):
        self.num_asked += 1
        await asyncio.sleep(self.pause)
        if self.messages:
            return self.messages.pop(0)
        if self.last is None:
            await asyncio.Event().wait()
        return self.last


END = {"type": "http.request"}


def read(peer, *, max_bytes=1000, seconds=5.0):
    return asyncio.run(read_body(peer, max_bytes=max_bytes, seconds=seconds))


@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 200), st.booleans())
def test_the_limit_is_exact_wherever_the_pieces_end(pieces, limit, is_last_empty):
    whole = b"".join(pieces)
    peer = Peer(*pieces, last=END)
    if pieces and not is_last_empty:
        peer.messages[-1]["more_body"] = False
    if len(whole) <= limit:
        assert read(peer, max_bytes=limit) == whole
        return
    with pytest.raises(ApiError) as caught:
        read(peer, max_bytes=limit)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    totals = [sum(map(len, pieces[: count + 1])) for count in range(len(pieces))]
    assert peer.num_asked == next(count for count, total in enumerate(totals, 1) if total > limit)  # not one more
    is_over = peer.num_asked == len(pieces) and not is_last_empty
    assert caught.value.headers == ({} if is_over else {"connection": "close"})


def test_a_pause_that_is_too_long():
    begin = time.monotonic()
    with pytest.raises(ApiError) as caught:
        read(Peer(b"{", b""), seconds=0.05)
    assert time.monotonic() - begin < 2
    assert (caught.value.status, caught.value.headers) == (408, {"connection": "close"})


def test_the_time_is_for_a_pause_and_not_for_the_whole():
    pieces = [b"x" * 200] * 20
    assert read(Peer(*pieces, last=END, pause=0.02), seconds=0.2, max_bytes=4000) == b"x" * 4000


def test_a_body_that_drips_has_an_end():
    peer = Peer(*[b"x"] * 500, last=END, pause=0.02)
    with pytest.raises(ApiError) as caught:
        read(peer, seconds=0.2)
    assert caught.value.status == 408
    assert peer.num_asked < 100


@pytest.mark.parametrize("pieces", [(), (b"{",), (b"{}", b"")])
def test_a_client_that_leaves(pieces):
    with pytest.raises(ClientDisconnect):
        read(Peer(*pieces, last={"type": "http.disconnect"}))


@pytest.mark.parametrize("size", [10, 100_000])  # parsed at once, and on a thread
def test_read_json(size):
    value = {"a": "x" * size}
    peer = Peer(json.dumps(value).encode(), last=END)
    assert asyncio.run(read_json(peer, max_bytes=1 << 20, seconds=5)) == value
    with pytest.raises(ApiError):
        asyncio.run(read_json(Peer(b"[" + b" " * size, last=END), max_bytes=1 << 20, seconds=5))
