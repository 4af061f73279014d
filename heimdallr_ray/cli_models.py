"""`heimdallr models`: the registry of segmentation models."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from heimdallr_ray.cli_common import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    ProfileOption,
    err,
    failure,
    out,
    say,
    settings_of,
)
from heimdallr_ray.clock import Clock, SystemClock
from heimdallr_ray.errors import BadSetting, DownloadFailed, HeimdallrError

if TYPE_CHECKING:
    from heimdallr_ray.config import Settings
    from heimdallr_ray.operations.models import Telling
    from heimdallr_ray.segmentation.archives import Archive
    from heimdallr_ray.segmentation.install import Installed

models = typer.Typer(help="The registry of segmentation models.", no_args_is_help=True)

IntoOption = Annotated[
    Path | None, typer.Option("--into", help="The registry; default: HEIMDALLR_WEIGHTS_DIR, or the data folder's.")
]
AcceptOption = Annotated[bool, typer.Option("--accept-licence", help="You have read the terms; nothing is asked.")]
DigestOption = Annotated[
    list[str] | None,
    typer.Option("--sha256", help="The digest that you know an archive by: HEX, or FOLDER=HEX; may be repeated."),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="A model that is there with other bytes gives way to the new one.")
]

_OTHER_WAYS = (
    "-> behind a proxy: HTTPS_PROXY=http://HOST:PORT, and NO_PROXY for what is not behind it",
    "-> from a mirror of the site: --from https://HOST/FOLDER",
    "-> without a network: download elsewhere, then heimdallr models import FILE.zip: docs/weights.md",
)


@models.command("list")
def models_list(
    into: IntoOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every task: whether its models are installed, their size, digest and licence, and what is measured from it."""
    from heimdallr_ray.operations import doctor, mending
    from heimdallr_ray.operations.model_state import CHANGED, listing
    from heimdallr_ray.segmentation.notes import not_run, read_refusal

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    folder = into or doctor.weights_dir_of(settings)
    try:
        idle, refused = (not_run(settings.run_dir), read_refusal(settings.run_dir)) if into is None else ({}, "")
        rows: list[dict[str, Any]] = [{**row, "not_run": idle.get(row["task"], "")} for row in listing(folder)]
    except HeimdallrError as error:
        ended = failure(error)
        err.print(
            f"in {folder} (profile {settings.profile})\n-> {mending.hint(settings, into)}", soft_wrap=True, markup=False
        )
        raise ended from error
    if as_json:
        told = {"folder": str(folder), "profile": settings.profile, "refused": refused, "tasks": rows}
        print(json.dumps(told))  # noqa: T201
        return
    out.print(f"{folder} (profile {settings.profile})", soft_wrap=True, markup=False)
    for row in rows:
        size = f"{row['size_bytes'] / 2**20:.1f} MiB" if row["size_bytes"] else "-"
        out.print(f"{row['task']:<28} {row['state']:<10} {size:>12}  {row['licence']}", markup=False, soft_wrap=True)
        for model in row["models"]:
            digests = ", ".join(digest[:16] for digest in model["checkpoints"].values())
            held = f"sha256 {digests}" if digests else "missing"
            if model["state"] == CHANGED:
                held = "changed: a file is gone or has another size than the manifest says"
            out.print(f"    {model['folder']}  {held}  {model['terms']}", markup=False, soft_wrap=True)
        if row["not_run"]:
            out.print(f"    the Segmenter does not run it: {row['not_run']}", markup=False, soft_wrap=True)
        if row["measurements"]:
            out.print(f"    for {', '.join(row['measurements'])}", markup=False, soft_wrap=True)
        if row["command"]:
            out.print(f"    -> {row['command']}", markup=False, soft_wrap=True)
    place = f" --into {quote(str(into))}" if into is not None else ""
    out.print(
        f"As listed in the manifest, not verified here: heimdallr models verify{place}", markup=False, soft_wrap=True
    )
    if refused:
        err.print(f"the Segmenter did not start with these models: {refused}", markup=False, soft_wrap=True)


@models.command("fetch")
def models_fetch(
    names: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks of `heimdallr models list`.")],
    accept: AcceptOption = False,
    mirror: Annotated[
        str | None, typer.Option("--from", help="Folder of a mirror (https) that holds upstream's ZIPs.")
    ] = None,
    sha256: DigestOption = None,
    replace: ReplaceOption = False,
    into: IntoOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    profile: ProfileOption = None,
) -> None:
    """Download TotalSegmentator's weights of these tasks and install them. Interrupted, it goes on where it was."""
    from heimdallr_ray.operations import models as work
    from heimdallr_ray.segmentation.licence import require_licence

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    try:
        archives = work.wanted_archives(names)
        folder = work.registry_folder(settings, into)
        digests = work.parse_digests(sha256 or [], archives)
        require_licence(archives, licensed=work.has_licence(settings))
        _install(
            settings,
            archives,
            folder,
            partial(work.fetch, settings, archives, folder, mirror=mirror, digests=digests, replacing=replace),
            accept=accept,
        )
    except DownloadFailed as error:
        ended = failure(error)
        for line in _OTHER_WAYS:
            err.print(line, markup=False, soft_wrap=True)
        raise ended from error
    except HeimdallrError as error:
        raise failure(error) from error


@models.command("import")
def models_import(
    source: Annotated[
        Path, typer.Argument(exists=True, help="A ZIP of TotalSegmentator, or a folder of models or ZIPs.")
    ],
    accept: AcceptOption = False,
    sha256: DigestOption = None,
    replace: ReplaceOption = False,
    into: IntoOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    profile: ProfileOption = None,
) -> None:
    """Install weights from a file or a folder, without a network: upstream's own ZIPs, unpacked models, a registry."""
    from heimdallr_ray.ids import Sha256
    from heimdallr_ray.operations import models as work

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    try:
        folder = work.registry_folder(settings, into)
        if sha256 and (len(sha256) > 1 or not source.is_file()):
            raise BadSetting("--sha256 is for one ZIP")
        digest = Sha256.parse(sha256[0].rpartition("=")[2].lower()) if sha256 else None
        _install(
            settings,
            [],
            folder,
            partial(work.bring_in, settings, source, folder, digest=digest, replacing=replace),
            accept=accept,
        )
    except HeimdallrError as error:
        raise failure(error) from error


@models.command("licence")
def models_licence(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """The terms of each task's weights, and whether this site has set a licence number. The number is never shown."""
    from heimdallr_ray.operations.model_state import licences
    from heimdallr_ray.operations.models import has_licence
    from heimdallr_ray.segmentation.licence import LICENSED, NON_COMMERCIAL, OPEN

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    rows, present = licences(settings), has_licence(settings)
    if as_json:
        print(json.dumps({"licence_set": present, "tasks": rows}))  # noqa: T201
        return
    for row in rows:
        may = "may run" if row["may_run"] else "needs a licence of the site"
        if row["non_commercial"]:
            may += ", non-commercial use only"
        out.print(f"{row['task']:<28} {', '.join(row['terms']):<26} {may}", markup=False, soft_wrap=True)
    out.print(f"A licence number {'is' if present else 'is not'} set.", markup=False)
    for terms in (OPEN, NON_COMMERCIAL, LICENSED):
        out.print(terms.words, markup=False, soft_wrap=True)


@models.command("verify")
def models_verify(
    into: Annotated[Path | None, typer.Option("--into", help="The registry; default: that of the settings.")] = None,
    build: Annotated[
        bool, typer.Option("--build", help="Build each model from its plans too, as a replica does when it starts.")
    ] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every model file of the registry against its manifest."""
    from heimdallr_ray.operations import doctor, mending
    from heimdallr_ray.operations.model_state import require_all_usable
    from heimdallr_ray.segmentation.weights import any_synthetic, verify

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    folder = into or doctor.weights_dir_of(settings)
    where = f"{folder} (profile {settings.profile})"
    told = {"folder": str(folder), "profile": settings.profile}
    try:
        found = verify(folder)
        synthetic = any_synthetic(found)
        if build:
            require_all_usable(found)
    except HeimdallrError as error:
        hint = mending.hint(settings, into)
        if as_json:
            print(json.dumps({**told, "ok": False, "code": error.code, "detail": error.detail, "mend": hint}))  # noqa: T201
            raise typer.Exit(1) from error
        ended = failure(error)
        err.print(f"in {where}\n-> {hint}", soft_wrap=True, markup=False)
        raise ended from error
    if as_json:
        print(json.dumps({**told, "ok": True, "files": len(found.files), "synthetic": synthetic}))  # noqa: T201
        return
    note = ", DEMO WEIGHTS" if synthetic else ""
    out.print(f"{where}: {len(found.files)} files, unchanged{note}", soft_wrap=True)


@models.command("manifest")
def models_manifest(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with TotalSegmentator's model folders.")
    ],
) -> None:
    """Write manifest.json for model folders that you trust: from then on a changed byte is refused."""
    from heimdallr_ray.segmentation.weights import DAMAGED_NAME, is_damaged, read_manifest, write_manifest

    try:
        damaged = is_damaged(folder)
        path = write_manifest(folder, synthetic=False)
        note = ": DEMO WEIGHTS, refused by the profile `site`" if read_manifest(folder).synthetic else ""
    except HeimdallrError as error:
        raise failure(error) from error
    out.print(f"{path}{note}", soft_wrap=True)
    if damaged:
        out.print(f"the damaged one is kept as {DAMAGED_NAME}; what it pinned of first imports is lost", soft_wrap=True)


def _install(
    settings: Settings,
    archives: Sequence[Archive],
    folder: Path,
    bring: Callable[[Telling, Clock], Iterable[Installed]],
    *,
    accept: bool,
) -> None:
    """What `bring` installs is in the registry and told of; the person has agreed to the terms before."""
    _agree(archives, accept=accept)
    with _bytes_bar() as bar:
        _tell(bring(_telling(bar), SystemClock()))
    _after(folder, settings)


def _agree(archives: Sequence[Archive], *, accept: bool) -> None:
    """The person has seen the terms and agreed, or has said before that it does."""
    from heimdallr_ray.operations.models import terms_of_all
    from heimdallr_ray.segmentation.licence import LICENSED, NON_COMMERCIAL, OPEN

    for terms, folders in terms_of_all(archives).items():
        err.print(f"{', '.join(folders)}\n  {terms.words}", markup=False, soft_wrap=True)
    if not archives:
        for terms in (OPEN, NON_COMMERCIAL, LICENSED):
            err.print(terms.words, markup=False, soft_wrap=True)
    if accept:
        return
    if not sys.stdin.isatty():
        raise BadSetting("nobody is there to agree to the terms: say --accept-licence once you have read them")
    if not typer.confirm("Do you accept these terms?", err=True):
        raise typer.Abort


def _bytes_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=err,
    )  # fmt: skip


def _telling(bar: Progress) -> Telling:
    from heimdallr_ray.operations.models import Telling

    rows: dict[str, TaskID] = {}

    def on_bytes(name: str, done: int, total: int | None) -> None:
        if name not in rows:
            rows[name] = bar.add_task(name, total=total)
        bar.update(rows[name], completed=done, total=total)

    return Telling(say=say, on_bytes=on_bytes, sleep=time.sleep)


def _tell(installed: Iterable[Installed]) -> None:
    for one in installed:
        size = f"{one.files} files, {one.size_bytes / 2**20:.1f} MiB"
        how = ", already there" if one.unchanged else ""
        made = f", {one.rewritten} checkpoints rewritten to be read without running them" if one.rewritten else ""
        out.print(f"{one.folder}: {size}{how}{made}", markup=False, soft_wrap=True)


def _after(folder: Path, settings: Settings) -> None:
    from heimdallr_ray.operations.model_state import weights_at
    from heimdallr_ray.pipelines.demand import demand_of
    from heimdallr_ray.segmentation.registry import command_for, missing_needed

    words = [f"installed in {folder}; a running stack takes them up when it is started anew"]
    absent = missing_needed(weights_at(folder), demand_of(settings.measurements))
    if absent:
        words.append(f"the measurements of this site need {', '.join(absent)} too: {command_for(absent, folder)}")
    for line in words:
        out.print(line, markup=False, soft_wrap=True)
