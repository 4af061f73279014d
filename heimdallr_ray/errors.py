"""Every error the package raises on purpose: three families, one stable code per leaf.

`Rejected` is the sender's fault and is never retried, `Retryable` may succeed later, `Broken` is ours and stops the
work. Each leaf maps once to an HTTP status and to a DIMSE status (PS3.7 Annex C, PS3.4 table B.2-1).
"""

from __future__ import annotations

from typing import Any, ClassVar


class HeimdallrError(Exception):
    """Root of all errors raised on purpose.

    `code` is stable and goes into API bodies, study reasons and logs; `detail` is for a person and carries no patient
    data.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    dimse_status: ClassVar[int] = 0x0110

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or (type(self).__doc__ or self.code).strip().splitlines()[0])
        self.detail = str(self)

    def __reduce__(self) -> tuple[type[HeimdallrError], tuple[str | None, ...]]:
        """Errors cross process boundaries with their detail."""
        return type(self), (self.detail,)


class Rejected(HeimdallrError):
    """The input cannot be accepted as it is; sending it again changes nothing."""

    code = "rejected"
    http_status = 400
    dimse_status = 0xC000


class Retryable(HeimdallrError):
    """Not possible at the moment; the same request may succeed later."""

    code = "retryable"
    http_status = 503
    dimse_status = 0xA700


class Broken(HeimdallrError):
    """Something that should hold does not hold: a defect of ours or of the installation."""

    code = "broken"
    http_status = 500
    dimse_status = 0x0110


# Rejected ------------------------------------------------------------------------------------------------------------


class BadIdentifier(Rejected):
    """An identifier does not have the form its standard prescribes."""

    code = "bad_identifier"


class NotDicom(Rejected):
    """The bytes are not a DICOM object."""

    code = "not_dicom"


class TruncatedObject(Rejected):
    """The object ends too early: inside its header, or, where its pixels are read, inside them."""

    code = "truncated"


class TooLarge(Rejected):
    """The input exceeds a limit of heimdallr_ray.dicom.limits."""

    code = "too_large"
    http_status = 413


class BadArchive(Rejected):
    """The ZIP archive is damaged, or holds a name or an entry that is not allowed."""

    code = "bad_archive"


class EmptyInput(Rejected):
    """Nothing in the input is a DICOM instance."""

    code = "empty_input"


class NotAVolume(Rejected):
    """The series cannot be assembled exactly; `reason` says which rule failed."""

    code = "not_a_volume"

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[HeimdallrError], tuple[str, ...]]:
        """Errors cross process boundaries with reason and detail."""
        return type(self), (self.reason, self.detail)


class NoUsableSeries(Rejected):
    """No series of the study can be measured; each carries its own reject code."""

    code = "no_usable_series"
    http_status = 422


class ModalityNotSupported(Rejected):
    """No installed model reads this modality."""

    code = "modality_not_supported"
    http_status = 422


class GeometryMismatch(Rejected):
    """Label map and image do not describe the same grid."""

    code = "geometry_mismatch"
    http_status = 422


class EmptyImage(Rejected):
    """The image holds nothing to segment (all voxels equal or zero)."""

    code = "empty_image"
    http_status = 422


class NotFound(Rejected):
    """There is no such thing here."""

    code = "not_found"
    http_status = 404


class Unauthorized(Rejected):
    """A bearer token is needed and was absent or wrong."""

    code = "unauthorized"
    http_status = 401
    dimse_status = 0x0124


class Forbidden(Rejected):
    """The request comes from a page or a name that may not make it."""

    code = "forbidden"
    http_status = 403


class NotRetryable(Rejected):
    """The study is not in a state in which it can be queued again."""

    code = "not_retryable"
    http_status = 409


class NotOpen(Rejected):
    """The study is not being received any more, so that nobody can say that it is complete."""

    code = "not_open"
    http_status = 409


class NoTilt(Rejected):
    """The series has no tilt of the gantry that could be taken out or left in."""

    code = "no_tilt"
    http_status = 409


class NoResult(Rejected):
    """The study ended without a result; none comes unless a person asks for another run."""

    code = "no_result"
    http_status = 409

    def __init__(self, state: str, reason_code: str | None = None, reason: str | None = None) -> None:
        super().__init__(f"the study is {state} and has no result" + (f": {reason_code}" if reason_code else ""))
        self.state = state
        self.reason_code = reason_code
        self.reason = reason

    def __reduce__(self) -> tuple[type[HeimdallrError], tuple[str | None, ...]]:
        """Errors cross process boundaries with everything they say."""
        return type(self), (self.state, self.reason_code, self.reason)


class TokenExists(Rejected):
    """A token of that name was made before; names are used once, because the audit chain knows them."""

    code = "token_exists"
    http_status = 409


class StudyMismatch(Rejected):
    """The object belongs to another study than the one that the request names."""

    code = "study_mismatch"
    http_status = 409
    dimse_status = 0xA900


class SlowSender(Rejected):
    """The sender paused for too long, or sends too slowly to be waited for."""

    code = "slow_sender"
    http_status = 408


class UnsupportedMedia(Rejected):
    """The body is of a media type that is not taken here."""

    code = "unsupported_media"
    http_status = 415


class NotAcceptable(Rejected):
    """None of the media types that the client accepts can be made here."""

    code = "not_acceptable"
    http_status = 406


class BadSetting(Rejected):
    """A setting is unknown, malformed or insecure."""

    code = "bad_setting"


class VertebraeJoined(Rejected):
    """The vertebrae were segmented as one lump, so none of them can be named."""

    code = "vertebrae_joined"
    http_status = 422


class CommitmentRefused(Rejected):
    """A request for storage commitment that is not taken on; `status` is its N-ACTION response."""

    code = "commitment_refused"

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(detail)
        self.status = status

    def __reduce__(self) -> tuple[type[HeimdallrError], tuple[Any, ...]]:
        """Errors cross process boundaries with status and detail."""
        return type(self), (self.status, self.detail)


# Retryable -----------------------------------------------------------------------------------------------------------


class StorageFull(Retryable):
    """No room left on the device that holds the data folder."""

    code = "storage_full"
    http_status = 507
    dimse_status = 0xA700


class StorageFailed(Retryable):
    """The operating system refused to make bytes durable."""

    code = "storage_failed"
    dimse_status = 0xA701


class DatabaseBusy(Retryable):
    """The database did not answer within its bound."""

    code = "database_busy"


class EngineUnavailable(Retryable):
    """The segmentation replica is not there at the moment."""

    code = "engine_unavailable"


class DecoderUnavailable(Retryable):
    """No process for decoding compressed images can be started at the moment."""

    code = "decoder_unavailable"


class DownloadFailed(Retryable):
    """Weights could not be downloaded; what arrived is kept for the next attempt."""

    code = "download_failed"


class StaleLease(Retryable):
    """Another worker holds the lease; this one's work is thrown away."""

    code = "stale_lease"


class MadeWay(Retryable):
    """Labels were being made ahead of their study, and other work came."""

    code = "made_way"


class AlreadyRunning(Retryable):
    """Another supervisor holds the data folder."""

    code = "already_running"


class NotReady(Retryable):
    """The stack did not become ready within its bound."""

    code = "not_ready"


class Draining(Retryable):
    """The stack is about to stop and takes nothing new in."""

    code = "draining"


class ResultsNotReady(NotReady):
    """The study has no result yet; it is still received or worked on."""

    http_status = 409


# Broken --------------------------------------------------------------------------------------------------------------


class WeightsMissing(Broken):
    """A model folder that the plan needs is not installed."""

    code = "weights_missing"


class WeightsTampered(Broken):
    """A model file differs from its entry in the sha256 manifest."""

    code = "weights_tampered"


class LicenceRequired(Broken):
    """The task needs a TotalSegmentator licence that the site has not configured."""

    code = "licence_required"


class BlobMissing(Broken):
    """A row names a blob that is not in the store, or whose bytes differ from its name."""

    code = "blob_missing"


class DatabaseUnusable(Broken):
    """The database cannot be used as it is; the detail says how to mend it."""

    code = "database_unusable"


class SchemaMismatch(DatabaseUnusable):
    """The database's schema is older or newer than this version of the package."""

    code = "schema_mismatch"


class IllegalTransition(Broken):
    """The study is not in a state from which this transition is allowed."""

    code = "illegal_transition"


class OutOfMemory(Broken):
    """The model did not fit into memory, not even split."""

    code = "oom"


class DeviceLost(Broken):
    """The accelerator refuses everything that this process asks; only another process can use it."""

    code = "device_lost"


class OutOfTime(Broken):
    """The study took longer than an engine may work on one."""

    code = "out_of_time"


class ModelOverBudget(Broken):
    """The model does not fit into the site's memory budget by itself."""

    code = "over_memory_budget"


class EngineKilled(Broken):
    """The segmentation engine died twice while it worked on this study."""

    code = "engine_killed"
