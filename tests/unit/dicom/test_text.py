"""Character sets, by the examples of PS3.5 annexes H, I, J and K."""

from __future__ import annotations

import pytest

from heimdallr_ray.dicom.text import codecs_of, decode


@pytest.mark.parametrize(
    ("term", "raw", "text"),
    [
        (b"", b"Adams^John", "Adams^John"),
        (b"ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        (b"ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
        (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        (b"ISO_IR 144", "Люкceмбypг".encode("iso8859-5"), "Люкceмбypг"),
        (
            b"\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            b"\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
    ],
)
def test_names_of_the_standard_are_decoded(term: bytes, raw: bytes, text: str):
    assert decode(raw, codecs_of(term), 194) == text


def test_unknown_character_set_and_damaged_bytes_never_raise():
    assert decode(b"A\xffB", codecs_of(b"NO SUCH SET"), 64) == "AÿB"
    assert decode(b"A\xff\xfeB", codecs_of(b"ISO_IR 192"), 64) == "A\ufffd\ufffdB"
    assert decode(b"A\x1b", codecs_of(b""), 64) == "A"


def test_text_is_bounded_and_holds_no_control_characters():
    assert decode(b"a\r\nb\x00\x07c  ", codecs_of(b""), 64) == "a b c"
    assert len(decode(b"x" * 10_000_000, codecs_of(b""), 64)) == 64
