"""Framings: what is encoded is decoded, however it is cut; and nothing is trusted that a peer says."""

from __future__ import annotations

import copy
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connpool import ConfigError, Framing, FramingError, Identified, LengthPrefixed, Lines, Raw
from connpool.wire.framing import bytes_of, decoder_of, has_rest

BOUNDED = [Lines(), Lines(b"\r\n"), LengthPrefixed(), LengthPrefixed(2, byteorder="little")]
texts = st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b"")))
cuts = st.lists(st.integers(1, 9), min_size=1)


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Cut *stream* into pieces of *sizes*, over and over."""
    found = []
    number = 0
    while stream:
        size = sizes[number % len(sizes)]
        found.append(stream[:size])
        stream = stream[size:]
        number += 1
    return found


@pytest.mark.parametrize("framing", BOUNDED)
@given(messages=texts, sizes=cuts)
def test_messages_come_out_as_they_went_in_wherever_the_stream_is_cut(
    framing: Framing, messages: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(map(framing.encode, messages))
    decoder = decoder_of(framing)
    assert [m for piece in pieces(stream, sizes) for m in decoder.feed(piece)] == messages


@given(message=st.binary(max_size=12), others=st.lists(st.binary(max_size=12)))
def test_a_line_that_could_be_mistaken_is_refused_and_every_other_comes_out_whole(
    message: bytes, others: list[bytes]
) -> None:
    framing = Lines(b"aa")
    try:
        stream = b"".join(map(framing.encode, [message, *others]))
    except FramingError:
        assert any((m + b"aa").find(b"aa") != len(m) for m in [message, *others])
    else:
        assert decoder_of(framing).feed(stream) == [message, *others]


def test_each_connection_has_a_decoder_of_its_own() -> None:
    pattern = Lines()
    one, other = decoder_of(pattern), decoder_of(pattern)
    assert one.feed(b"ab") == []
    assert other.feed(b"cd\n") == [b"cd"]
    assert one.feed(b"\n") == [b"ab"]
    assert pattern.feed(b"\n") == [b""]


@pytest.mark.parametrize("width", range(1, 9))
def test_a_length_is_in_network_order(width: int) -> None:
    assert LengthPrefixed(width).encode(b"abc") == (3).to_bytes(width, "big") + b"abc"


def test_raw_takes_messages_as_they_come() -> None:
    assert Raw().encode(b"abc") == b"abc"
    assert Raw().feed(b"ab") == [b"ab"]
    assert Raw().feed(b"") == []


def test_a_peer_that_announces_too_much_is_refused_before_any_memory_is_taken() -> None:
    decoder = LengthPrefixed(4, max_size=100)
    tracemalloc.start()
    try:
        with pytest.raises(FramingError, match=r"4294967295 bytes; max_size=100"):
            decoder.feed(b"\xff\xff\xff\xff")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("framing", "offence"),
    [
        (LengthPrefixed(1, max_size=3), b"\x04"),
        (Lines(max_size=3), b"abcd\n"),
        (Lines(max_size=3), b"abcd"),
        (Lines(b"\r\n", max_size=3), b"abcdefg"),
    ],
)
def test_messages_before_an_offence_are_given_and_none_after_it(framing: Framing, offence: bytes) -> None:
    decoder = decoder_of(framing)
    assert decoder.feed(framing.encode(b"ab") + offence) == [b"ab"]
    assert has_rest(decoder)
    for data in (b"", framing.encode(b"cd")):
        with pytest.raises(FramingError):
            decoder.feed(data)


@pytest.mark.parametrize(
    "framing", [LengthPrefixed(4, max_size=3), Lines(max_size=3), Lines(b"\r\n", max_size=3)]
)
def test_the_longest_message_allowed_passes_and_a_longer_one_is_not_sent(framing: Framing) -> None:
    decoder = decoder_of(framing)
    assert [m for byte in framing.encode(b"abc") for m in decoder.feed(bytes([byte]))] == [b"abc"]
    with pytest.raises(FramingError, match=r"4 bytes; max_size=3"):
        framing.encode(b"abcd")


def test_what_its_width_cannot_say_is_too_long() -> None:
    with pytest.raises(FramingError, match=r"256 bytes; max_size=255"):
        LengthPrefixed(1).encode(bytes(256))


@pytest.mark.parametrize("message", ["text", 7, None, {}])
def test_what_is_not_bytes_is_refused_by_name(message: object) -> None:
    with pytest.raises(FramingError, match=type(message).__name__):
        bytes_of(message)


@pytest.mark.parametrize("message", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_all_kinds_of_bytes_are_messages(message: bytes) -> None:
    assert bytes_of(message) == b"ab"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Lines, {"delimiter": b""}),
        (Lines, {"delimiter": "\n"}),
        (Lines, {"max_size": 0}),
        (Lines, {"max_size": True}),
        (LengthPrefixed, {"width": 0}),
        (LengthPrefixed, {"width": 9}),
        (LengthPrefixed, {"byteorder": "native"}),
        (LengthPrefixed, {"max_size": 1.5}),
    ],
)
def test_settings_out_of_range_are_named(kind: type[Framing], settings: dict[str, object]) -> None:
    [name] = settings
    with pytest.raises(ConfigError, match=name):
        kind(**settings)


def test_framings_can_be_copied() -> None:
    assert copy.deepcopy(Lines(b"\0")).encode(b"a") == b"a\0"


def test_ids_go_along_and_are_split_off_again() -> None:
    framing = Identified(Lines())
    id = bytes(range(16))
    decoder = decoder_of(framing)
    assert [
        Identified.split(m) for m in decoder.feed(framing.encode_as(b"a b", id) + framing.encode(b""))
    ] == [
        (id, b"a b"),
        (bytes(16), b""),
    ]


@pytest.mark.parametrize("message", [b"", b"abc", b"00 abc", bytes(16).hex().encode(), b"\xff" * 40])
def test_what_has_no_id_is_refused(message: bytes) -> None:
    with pytest.raises(FramingError, match="no id"):
        Identified.split(message)
