"""Association requests are looked at before they are decoded."""

from __future__ import annotations

import random
import struct
import time

import pytest

from heimdallr_ray.errors import NotDicom, TooLarge
from heimdallr_ray.listener.request_bounds import require_bounded
from heimdallr_ray.listener.wire.negotiate import read_request
from tests.support.monsters import MONSTERS, honest, item, request

ROLES = b"".join(
    item(0x54, struct.pack(">H", len(uid)) + uid + b"\0\1")
    for uid in (f"1.2.840.10008.5.1.4.1.1.{n}".encode() for n in range(128))
)
IDENTITY = item(0x58, struct.pack(">BBH", 4, 1, 6000) + b"a" * 6000 + struct.pack(">H", 0))
RELATED = item(
    0x57,
    struct.pack(">H", 3) + b"1.2" + struct.pack(">H", 3) + b"1.3" + struct.pack(">H", 10) + (b"\0\3" + b"1.4") * 2,
)


def test_the_largest_request_that_a_peer_has_use_for_is_read() -> None:
    read = read_request(honest(user=ROLES + IDENTITY + RELATED))
    assert len(read.contexts) == 128
    assert {len(syntaxes) for _, _, syntaxes in read.contexts} == {63}


@pytest.mark.parametrize("what", MONSTERS)
def test_a_monster_is_refused_before_it_is_decoded(what: str) -> None:
    """Decoding them took 0.2 to 1.6 s each, 0.05 s is ten times what looking at them takes."""
    content = MONSTERS[what]
    assert len(content) <= (1 << 20) + 6
    took: list[float] = []
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(TooLarge, match="A-ASSOCIATE-RQ with too many"):
            read_request(content)
        took.append(time.process_time() - began)
    assert min(took) < 0.05


def test_a_length_that_passes_the_end_is_refused() -> None:
    good = honest(contexts=2, syntaxes=3, user=RELATED)[6:]
    require_bounded(good)
    ends = {68}
    while (at := max(ends)) < len(good):
        ends.add(at + 4 + struct.unpack_from(">H", good, at + 2)[0])
    for size in range(68, len(good)):
        if size in ends:
            require_bounded(good[:size])
        else:
            with pytest.raises(NotDicom, match=r"cut off|false length"):
                require_bounded(good[:size])


def test_any_bytes_are_answered_with_one_error() -> None:
    chance = random.Random(1)
    good = bytearray(honest(contexts=4, syntaxes=4, user=RELATED)[6:])
    for _ in range(2000):
        body = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            body[chance.randrange(68, len(body))] = chance.randrange(256)
        try:
            require_bounded(body)
        except (NotDicom, TooLarge) as error:
            assert "A-ASSOCIATE-RQ" in error.detail
    with pytest.raises(NotDicom, match="too short"):
        require_bounded(b"\0" * 67)
    with pytest.raises(NotDicom, match="cut off"):
        require_bounded(request(b"\x10\0")[6:])
