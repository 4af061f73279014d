"""A few DICOM attributes as JSON (PS3.18 annex F) or XML (PS3.19 annex A.1), without a data set in between. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

JSON_TYPE = "application/dicom+json"
XML_TYPE = "application/dicom+xml"
_NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_ENCODINGS = {
    JSON_TYPE: JSON_TYPE,
    "application/json": JSON_TYPE,
    "application/*": JSON_TYPE,
    "*/*": JSON_TYPE,
    XML_TYPE: XML_TYPE,
    "application/xml": XML_TYPE,
    "text/xml": XML_TYPE,
}


@dataclass(frozen=True)
class Attribute:
    """One attribute: values, or items of a sequence; neither where it is empty."""

    tag: str
    """Eight hexadecimal digits."""
    vr: str
    keyword: str
    values: tuple[str | int, ...] = ()
    items: tuple[tuple[Attribute, ...], ...] = ()


def chosen_type(accept: str | None) -> str | None:
    """JSON_TYPE or XML_TYPE, the first of `accept` that is one (JSON where it names nothing); None where none is.

    Quality values are not weighed: whoever lists both gets the first.
    """
    wanted = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    # multipart/related; type="application/dicom+xml" asks for the same document in an envelope; one part needs none.
    wanted = [
        XML_TYPE if name == "multipart/related" and XML_TYPE in (accept or "").lower() else name for name in wanted
    ]
    return next((_ENCODINGS[name] for name in wanted if name in _ENCODINGS), None)


def encode(attributes: Sequence[Attribute], media_type: str) -> bytes:
    """The attributes as a document of `media_type` (JSON_TYPE or XML_TYPE), UTF-8."""
    if media_type == XML_TYPE:
        body = "".join(_xml(attribute) for attribute in _sorted(attributes))
        return f'{_DECLARATION}<NativeDicomModel xmlns="{_NAMESPACE}">{body}</NativeDicomModel>'.encode()
    return json.dumps(_json(attributes), separators=(",", ":")).encode()


def _sorted(attributes: Sequence[Attribute]) -> list[Attribute]:
    return sorted(attributes, key=lambda attribute: attribute.tag)


def _json(attributes: Sequence[Attribute]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for attribute in _sorted(attributes):
        found: dict[str, Any] = {"vr": attribute.vr}
        if attribute.items:
            found["Value"] = [_json(item) for item in attribute.items]
        elif attribute.values:
            found["Value"] = list(attribute.values)
        document[attribute.tag] = found
    return document


def _xml(attribute: Attribute) -> str:
    items = "".join(
        f'<Item number="{number}">{"".join(_xml(child) for child in _sorted(item))}</Item>'
        for number, item in enumerate(attribute.items, start=1)
    )
    values = "".join(
        f'<Value number="{number}">{escape(str(value))}</Value>' for number, value in enumerate(attribute.values, 1)
    )
    head = f"tag={quoteattr(attribute.tag)} vr={quoteattr(attribute.vr)} keyword={quoteattr(attribute.keyword)}"
    return f"<DicomAttribute {head}>{items}{values}</DicomAttribute>"
