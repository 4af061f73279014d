"""What `heimdallr send` and `heimdallr upload` tell a person: one fact a line, long lists cut and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.clients.aftermath import Fate
from heimdallr_ray.clients.commit import Commitment
from heimdallr_ray.clients.dimse import Refusal
from heimdallr_ray.clients.files import MAX_NAMED, SkippedFile
from heimdallr_ray.clients.sent import SendReport
from heimdallr_ray.clients.upload import UploadReport
from heimdallr_ray.config import Settings, is_loopback
from heimdallr_ray.config.network import Peer
from heimdallr_ray.listener.gate import GateRules

EXAMPLES = 3
"""Images that are named of those that failed for one reason."""


def page_base(url: str) -> str | None:
    """`url` where its pages are on this machine; None for a remote server, whose pages we do not name."""
    host = urlsplit(url).hostname or ""
    return url.rstrip("/") if is_loopback(host) else None


def local_base(host: str, port: int, dicom_host: str, dicom_port: int, url: str) -> str | None:
    """`url` where a C-STORE to `host:port` reaches the installation of the settings, else None."""
    return page_base(url) if on_this_machine(host, dicom_host) and port == dicom_port else None


def on_this_machine(host: str, dicom_host: str) -> bool:
    """True where `host` is certain to be this machine: `dicom_host` is what its own listener binds to."""
    return is_loopback(host) or host == dicom_host


def rule_behind(
    refusal: Refusal,
    settings: Settings | None,
    *,
    secured: bool = False,
    certified: bool = False,
    address: str = "",
    here: bool = False,
) -> str:
    """Which rule of the peer a refusal comes from, as far as it can be known here; empty where it cannot.

    Args:
        refusal: what the peer said.
        settings: of the peer, where it is this installation's own listener.
        secured: True where the connection was TLS.
        certified: True where it showed a certificate of ours.
        address: ours, as the peer sees it; empty where it is not known.
        here: True where the peer is on this machine.
    """
    if refusal.kind == "unreachable":
        return "is the listener up? `heimdallr status` tells" if here else ""
    if refusal.kind == "certificate":
        return _of_certificate(certified, ours=settings is not None)
    silent = refusal.kind == "no_answer"
    if settings is None:
        return _strangers_silence(secured, certified) if silent else ""
    if silent:
        return _silence(settings, secured, certified, address)
    names = ", ".join(settings.allowed_calling_aes)
    return {
        "called_ae": f"the listener here is called {settings.ae_title}, setting ae_title",
        "calling_ae": f"setting allowed_calling_aes lets in {names}" if names else "",
        "local_limit": f"setting max_associations is {settings.max_associations}",
        "congestion": "the disk of the data folder is too full, `heimdallr doctor` tells",
    }.get(refusal.kind, "")


def _of_certificate(certified: bool, *, ours: bool) -> str:
    """What to do where the peer does not take our certificate; `ours`: it is the listener of this installation."""
    if not certified:
        return "it wants one: --tls-certificate and --tls-key"
    by = "setting dicom_tls_ca of the listener here has" if ours else "the peer knows"
    return f"{by} the authorities that may have signed it"


def _strangers_silence(secured: bool, certified: bool) -> str:
    """What a peer of somebody else may have hung up for."""
    of_tls = "that it speaks TLS only"
    if secured:
        of_tls = "our certificate" if certified else "that it wants a certificate of ours, --tls-certificate"
    return f"it does not say why: its rules for addresses, its limits or {of_tls} may be the reason, its log tells"


def _silence(settings: Settings, secured: bool, certified: bool, address: str) -> str:
    """What our own listener may have hung up for, by these settings; the likeliest first."""
    if address and not GateRules.of(settings).admits_address(address):
        counted = "`heimdallr intake status` counts that as refused.address"
        return f"setting allowed_addresses does not hold {address}, from which we call; {counted}"
    causes: list[str] = []
    if settings.dicom_tls == "on" and not secured:
        causes.append(
            "the listener here speaks TLS only, setting dicom_tls: give --tls-ca, --tls-certificate and --tls-key"
        )
    elif settings.dicom_tls == "on" and not certified:
        causes.append(
            "the listener here wants a certificate of ours, setting dicom_tls: give --tls-certificate and --tls-key"
        )
    elif settings.dicom_tls == "on":
        causes.append("no authority in setting dicom_tls_ca may have signed our certificate")
    elif secured:
        causes.append("the listener here speaks no TLS, setting dicom_tls")
    here = f"{address}, from which we call, " if address else "the address from which we call "
    causes.append(f"{here}may not be let in by setting allowed_addresses")
    causes.append("setting max_associations or max_associations_per_address may be reached")
    return f"it does not say why: {'; or '.join(causes)}; `refused` in `heimdallr intake status` tells which"


def page(base: str, study_uid: str) -> str:
    """The study's page, as the web application names it."""
    return f"{base}/studies/{study_uid}"


def of_send(
    report: SendReport, base: str | None, known: int | None = None, fates: Sequence[Fate] = ()
) -> Iterator[str]:
    """The lines of a C-STORE report.

    Args:
        report: what became of the files.
        base: address of the pages, where they are on this machine.
        known: images that the server had before; None: it does not say.
        fates: what becomes of the studies, as far as the server says it.
    """
    all_of_them = _count(len(report.files), "image")
    sent = f"{report.sent} of {all_of_them}" if report.failed else all_of_them
    yield f"sent     {sent}, {_size(report.bytes_sent)} in {report.seconds:.1f} s"
    if known and known >= report.sent:
        yield "known    all of them were there before: nothing new"
    elif known:
        yield f"known    {known} of them {'was' if known == 1 else 'were'} there before, {report.sent - known} new"
    failures = [item for item in report.files if not item.acknowledged]
    if failures:
        yield f"failed   {_count(len(failures), 'image')}"
        yield from _by_reason([(item.path, item.reason) for item in failures])
    yield from _skipped(report.skipped, report.skipped_files)
    yield from _studies(report.study_uids, base)
    if report.without_study_uid:
        yield f"study    {_count(report.without_study_uid, 'image')} without a StudyInstanceUID; the receiver gives one"
        # C-STORE has no answer that could name it.
        yield from _worklist(base)
    yield from _then(fates)


def of_upload(report: UploadReport, base: str | None, fates: Sequence[Fate] = ()) -> Iterator[str]:
    """The lines of an upload's report; `base` is the address of the pages, `fates` what becomes of the studies."""
    studies = "1 study" if len(report.study_uids) == 1 else f"{len(report.study_uids)} studies"
    new, known = report.accepted - report.already_there, report.already_there
    if new:
        images = f"{new} new {'image' if new == 1 else 'images'}" if known else _count(new, "image")
        yield f"stored   {images} of {studies}, {_size(report.bytes_sent)} uploaded"
    if known and new:
        yield f"known    {_count(known, 'image')} {'was' if known == 1 else 'were'} there before"
    elif known:
        yield f"known    {_count(known, 'image')}, there before: nothing new"
    yield from _skipped(report.skipped, report.skipped_files)
    yield from _studies(report.study_uids, base)
    if known and not report.study_uids:
        # The server names the studies of what it stores, not of what it has.
        yield f"study    {_count(known, 'image')} without a StudyInstanceUID; the server gave {_them(known)} one"
        yield from _worklist(base)
    yield from _then(fates)


def of_commitment(promised: Commitment) -> Iterator[str]:
    """The lines about what the peer has promised to keep."""
    if kept := promised.committed:
        yield f"safe     {_count(kept, 'image')}: the peer has promised to keep {_them(kept)}"
    if promised.failures:
        yield f"NOT safe {_count(len(promised.failures), 'image')}: do not delete {_them(len(promised.failures))}"
        yield from _by_reason([(item.path, item.reason) for item in promised.failures])


def of_reports_elsewhere(told: Peer, port: int) -> str:
    """What to know where our own listener reports to `told`, and not to `port`, which waits for its reports."""
    return (
        f"your settings have {told}: the listener here reports to port {told.port}, and nobody to --commit-port {port}"
    )


def _them(number: int) -> str:
    return "it" if number == 1 else "them"


def of_interrupted_send(done: int, files: int, *, promise: bool = False) -> str:
    """What a person who stopped a send has to know; `promise`: the peer was to be asked to keep the images."""
    if not files:
        return "stopped: nothing was sent"
    if done == files:
        answered = f"stopped: {_count(files, 'image')} answered"
        return f"{answered}; the peer has not promised to keep all of them yet" if promise else f"{answered}, none left"
    return (
        f"stopped: {done} of {_count(files, 'image')} answered, {files - done} left; "
        "the same command sends all of them, and none is stored twice"
    )


def of_interrupted_upload(confirmed: int, files: int, on_its_way: int = 0) -> str:
    """What a person who stopped an upload has to know.

    Args:
        confirmed: images that the server has said it has.
        files: images in all; 0: it has not said yet which it has.
        on_its_way: images of the request that was sent and not answered yet.
    """
    if not files:
        return (
            "stopped: nothing was sent yet, and the server has not said which images it has; "
            "the same command asks, and sends the others"
        )
    if confirmed == files:
        return f"stopped: the server has {'it' if files == 1 else f'all {files} images'}, none left"
    flight = (
        f"one request of {_count(on_its_way, 'image')} was on its way and may have been stored; " if on_its_way else ""
    )
    return (
        f"stopped: {confirmed} of {_count(files, 'image')} confirmed; {flight}"
        "the same command goes on from there. What has come stays open for it, for up to "
        "settle_after_abort_seconds of the server (5 minutes unless it was set)"
    )


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


def _worklist(base: str | None) -> Iterator[str]:
    if base is not None:
        yield f"page     {base}/ is the worklist; the study is there under its patient"


def _then(fates: Sequence[Fate]) -> Iterator[str]:
    words = Counter(_becomes(fate) for fate in fates)
    for said, number in words.items():
        yield f"then     {said}" + (f" ({number} studies)" if len(words) > 1 and number > 1 else "")
    for fate in fates:
        if fate.uid_conflicts:
            uids = f"{_count(fate.uid_conflicts, 'SOP Instance UID')} with images of different bytes"
            yield f"conflict {uids} in study {fate.study_uid}: all are kept, see its page"


_ENDS = {
    StudyState.QUEUED: "complete, its analysis waits for its turn",
    StudyState.RUNNING: "complete, its analysis runs",
    StudyState.DONE: "complete, its analysis is done",
    StudyState.FAILED: "its analysis has failed, its page tells why",
    StudyState.NOT_APPLICABLE: "complete, there is nothing to be analysed",
}


def _becomes(fate: Fate) -> str:
    if fate.closes_in_s is not None:
        when = f"in {round(fate.closes_in_s)} s" if fate.closes_in_s >= 1 else "now"
        return f"analysis starts {when} if nothing more comes: {fate.reason}"
    if fate.state in (StudyState.RECEIVING, StudyState.SETTLING):
        return f"not complete yet{': ' + fate.reason if fate.reason else ', its page tells when'}"
    try:
        return _ENDS.get(StudyState(fate.state), f"it is {fate.state}")
    except ValueError:
        return f"it is {fate.state}"


def _by_reason(failures: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Path and reason of each: a reason of several once, with how many and the first of them."""
    groups: dict[str, list[str]] = {}
    for path, reason in failures:
        groups.setdefault(reason, []).append(path)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for reason, paths in ordered[:MAX_NAMED]:
        if len(paths) == 1:
            yield f"  {paths[0]}: {reason}"
            continue
        yield f"  {_count(len(paths), 'image')}: {reason}"
        yield from (f"    {path}" for path in paths[:EXAMPLES])
        if len(paths) > EXAMPLES:
            yield f"    and {len(paths) - EXAMPLES} more"
    if rest := sum(len(paths) for _, paths in ordered[MAX_NAMED:]):
        yield f"  and {_count(rest, 'image')} for other reasons"


def _more(count: int, shown: int = MAX_NAMED) -> Iterator[str]:
    if count > shown:
        yield f"  and {count - shown} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
