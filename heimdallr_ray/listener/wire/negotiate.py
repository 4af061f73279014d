"""A-ASSOCIATE-RQ read and answered with pynetdicom's codec and rules, the same as those of the reference backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from pydicom import config
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context

from heimdallr_ray.errors import NotDicom
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.contexts import accept_contexts
from heimdallr_ray.listener.request_bounds import MAX_CONTEXTS, require_bounded
from heimdallr_ray.listener.wire.pdu import HEADER_BYTES

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


@dataclass(frozen=True)
class Request:
    """What a peer asks for."""

    called_ae: str
    calling_ae: str
    application_context: str
    protocol_version: int
    implementation: str
    contexts: tuple[tuple[int, str, tuple[str, ...]], ...]
    """Id, abstract syntax, transfer syntaxes."""
    primitive: A_ASSOCIATE


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


def read_request(content: bytes) -> Request:
    """The A-ASSOCIATE-RQ whose whole PDU is `content`.

    Raises:
        TooLarge: it asks for more than a peer could use.
        NotDicom: it is malformed.
    """
    require_bounded(memoryview(content)[HEADER_BYTES:])
    pdu = A_ASSOCIATE_RQ()
    # pydicom would warn of each malformed UID, and `warnings` keeps every text for ever: memory for strangers to fill.
    cast(Any, config.settings).reading_validation_mode = config.IGNORE
    try:
        pdu.decode(content)
        primitive = cast(Any, pdu.to_primitive())
        contexts = tuple(
            (int(item.context_id), str(item.abstract_syntax or ""), tuple(map(str, item.transfer_syntax)))
            for item in primitive.presentation_context_definition_list
        )
        request = Request(
            called_ae=str(primitive.called_ae_title).strip(),
            calling_ae=str(primitive.calling_ae_title).strip(),
            application_context=str(primitive.application_context_name),
            protocol_version=int(cast(Any, pdu).protocol_version),
            implementation=str(primitive.implementation_class_uid or ""),
            contexts=contexts,
            primitive=primitive,
        )
    except Exception as error:
        # The codec is not ours and meets bytes of strangers: whatever it says, the request is malformed.
        raise NotDicom(f"malformed A-ASSOCIATE-RQ ({type(error).__name__})") from error
    if not contexts or len(contexts) > MAX_CONTEXTS or len({item[0] for item in contexts}) != len(contexts):
        raise NotDicom("malformed A-ASSOCIATE-RQ (presentation contexts)")
    return request


def answer(request: Request, max_pdu_bytes: int, *, commitment: bool) -> tuple[bytes, dict[int, Context]]:
    """The A-ASSOCIATE-AC (PS3.8 section 9.3.3) and the accepted contexts by their id."""
    accepted: dict[int, Context] = {}
    results: list[PresentationContext] = []
    for proposed, syntax in zip(
        request.contexts, accept_contexts(request.contexts, commitment=commitment), strict=True
    ):
        context_id, abstract, offered = proposed
        result = build_context(abstract, syntax or (offered[0] if offered else "1.2.840.10008.1.2"))
        result.context_id = context_id
        # PS3.8 table 9-18: 3 abstract syntax, 4 transfer syntaxes not supported.
        result.result = 0 if syntax else (4 if syntax == "" else 3)
        results.append(result)
        if syntax:
            accepted[context_id] = Context(abstract, syntax)
    primitive = cast(Any, A_ASSOCIATE())
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = cast(Any, request.primitive).calling_ae_title
    primitive.called_ae_title = cast(Any, request.primitive).called_ae_title
    primitive.result = 0
    primitive.presentation_context_definition_results_list = results
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu_bytes
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = cast(Any, part10.IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = part10.IMPLEMENTATION_VERSION
    primitive.user_information = [length, implementation, version]
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    return pdu.encode(), accepted
