"""What `heimdallr send` and `heimdallr upload` tell a person: one fact a line, long lists cut and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from heimdallr_ray.clients.dimse import Refusal
from heimdallr_ray.clients.files import MAX_NAMED, SkippedFile
from heimdallr_ray.clients.sent import SendReport
from heimdallr_ray.clients.upload import UploadReport
from heimdallr_ray.config import Settings, is_loopback


def page_base(url: str) -> str | None:
    """`url` where its pages are on this machine; None for a remote server, whose pages we do not name."""
    host = urlsplit(url).hostname or ""
    return url.rstrip("/") if is_loopback(host) else None


def local_base(host: str, port: int, dicom_host: str, dicom_port: int, url: str) -> str | None:
    """`url` where a C-STORE to `host:port` reaches the installation of the settings, else None."""
    same_machine = is_loopback(host) or host == dicom_host
    return page_base(url) if same_machine and port == dicom_port else None


def local_rule(refusal: Refusal, settings: Settings) -> str:
    """Which of this installation's settings a refusal by its own listener comes from; empty where it is none."""
    names = ", ".join(settings.allowed_calling_aes)
    silent = "settings allowed_addresses and max_associations may be why, `heimdallr intake status` tells"
    if settings.dicom_tls == "on":
        silent = (
            "the listener here speaks TLS only, with peers whose certificate dicom_tls_ca knows (setting dicom_tls): "
            f"give --tls-ca, --tls-certificate and --tls-key; or {silent}"
        )
    return {
        "called_ae": f"the listener here is called {settings.ae_title}, setting ae_title",
        "calling_ae": f"setting allowed_calling_aes lets in {names}" if names else "",
        "local_limit": f"setting max_associations is {settings.max_associations}",
        "congestion": "the disk of the data folder is too full, `heimdallr doctor` tells",
        "no_answer": silent,
    }.get(refusal.kind, "")


def page(base: str, study_uid: str) -> str:
    """The study's page, as the web application names it."""
    return f"{base}/studies/{study_uid}"


def of_send(report: SendReport, base: str | None, idle_s: float | None = None) -> Iterator[str]:
    """The lines of a C-STORE report; `base` is the address of the pages and `idle_s` its idle time, where known."""
    all_of_them = _count(len(report.files), "image")
    sent = f"{report.sent} of {all_of_them}" if report.failed else all_of_them
    yield f"sent     {sent}, {_size(report.bytes_sent)} in {report.seconds:.1f} s"
    failures = [item for item in report.files if not item.acknowledged]
    if failures:
        yield f"failed   {_count(len(failures), 'image')}"
        for item in failures[:MAX_NAMED]:
            yield f"  {item.path}: {item.reason}"
        yield from _more(len(failures))
    yield from _skipped(report.skipped, report.skipped_files)
    yield from _studies(report.study_uids, base)
    if report.without_study_uid:
        yield f"study    {_count(report.without_study_uid, 'image')} without a StudyInstanceUID; the receiver gives one"
    yield from _then(report.sent, idle_s)


def of_upload(report: UploadReport, base: str | None, idle_s: float | None = None) -> Iterator[str]:
    """The lines of an upload's report; `base` is the address of the pages and `idle_s` its idle time, where known."""
    studies = "study" if len(report.study_uids) == 1 else "studies"
    yield (
        f"stored   {_count(report.accepted, 'image')} of {len(report.study_uids)} {studies}, "
        f"{_size(report.bytes_sent)} uploaded"
    )
    if report.already_there:
        yield f"         {report.already_there} of them {'was' if report.already_there == 1 else 'were'} already there"
    yield from _skipped(report.skipped, report.skipped_files)
    yield from _studies(report.study_uids, base)
    yield from _then(report.accepted - report.already_there, idle_s)


def _skipped(count: int, named: Sequence[SkippedFile]) -> Iterator[str]:
    if not count:
        return
    yield f"skipped  {_count(count, 'file')}"
    for item in named[:MAX_NAMED]:
        yield f"  {item.path}: {item.reason}"
    if named:
        yield from _more(count, len(named))


def _studies(uids: Sequence[str], base: str | None) -> Iterator[str]:
    for uid in uids[:MAX_NAMED]:
        yield f"study    {uid}"
        if base is not None:
            yield f"page     {page(base, uid)}"
    yield from _more(len(uids))


def _then(new: int, idle_s: float | None) -> Iterator[str]:
    if new > 0 and idle_s is not None:
        yield f"then     analysis starts {idle_s:g} s after the last image"


def _more(count: int, shown: int = MAX_NAMED) -> Iterator[str]:
    if count > shown:
        yield f"  and {count - shown} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
