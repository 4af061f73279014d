"""`heimdallr models`: the registry of segmentation models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from heimdallr_ray.cli_common import ConfigOption, DataDirOption, ProfileOption, err, failure, out, settings_of
from heimdallr_ray.errors import HeimdallrError

models = typer.Typer(help="The registry of segmentation models.", no_args_is_help=True)


@models.command("verify")
def models_verify(config: ConfigOption = None, data_dir: DataDirOption = None, profile: ProfileOption = None) -> None:
    """Check every model file of the registry against its manifest."""
    from heimdallr_ray.operations import doctor
    from heimdallr_ray.segmentation.weights import any_synthetic, verify

    settings = settings_of(config, data_dir=data_dir, profile=profile)
    folder = doctor.weights_dir_of(settings)
    where = f"{folder} (profile {settings.profile})"
    try:
        found = verify(folder)
        note = ", DEMO WEIGHTS" if any_synthetic(found) else ""
    except HeimdallrError as error:
        ended = failure(error)
        err.print(f"in {where}\n-> {doctor.weights_hint(settings)}", soft_wrap=True, markup=False)
        raise ended from error
    out.print(f"{where}: {len(found.files)} files, unchanged{note}", soft_wrap=True)


@models.command("manifest")
def models_manifest(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with TotalSegmentator's model folders.")
    ],
) -> None:
    """Write manifest.json for model folders that you trust: from then on a changed byte is refused."""
    from heimdallr_ray.segmentation.weights import read_manifest, write_manifest

    try:
        path = write_manifest(folder, synthetic=False)
        note = ": DEMO WEIGHTS, refused by the profile `site`" if read_manifest(folder).synthetic else ""
    except HeimdallrError as error:
        raise failure(error) from error
    out.print(f"{path}{note}", soft_wrap=True)
