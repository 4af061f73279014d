"""nnU-Net's checkpoints, read without ever running what is in them.

A checkpoint is a pickle. nnU-Net's own hold numpy scalars of the training log, which torch's restricted unpickler does
not know by itself; it is given those few numpy types and nothing else, so a checkpoint can name numbers and tensors and
no function. Whatever needs more is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch

from heimdallr_ray.errors import BadArchive, Broken, OutOfMemory
from heimdallr_ray.segmentation.totalseg.memory import is_out_of_memory

REQUIRED: Final = ("network_weights", "init_args", "trainer_name")
_KEPT: Final = (*REQUIRED, "inference_allowed_mirroring_axes")
"""What inference reads; optimizer, scaler and training log are dropped when a checkpoint is rewritten."""
_MAX_DEPTH: Final = 12
_REFUSED: Final = (
    pickle.UnpicklingError,
    RuntimeError,
    MemoryError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What torch answers with to a file that it does not read."""
_SCALARS: Final = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)


def _numpy_types() -> list[Any]:
    """What a number or an array of numpy is made from, under its names before and since numpy 2."""
    core = cast(Any, np)._core.multiarray
    dtypes = [type(np.dtype(kind)) for kind in _SCALARS]
    return [
        core.scalar,
        (core.scalar, "numpy.core.multiarray.scalar"),
        core._reconstruct,
        (core._reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def read_checkpoint(content: bytes, name: str) -> Mapping[str, Any]:
    """The checkpoint in `content`; nothing in it is run.

    Args:
        content: the file.
        name: for words.

    Raises:
        BadArchive: it is none of nnU-Net's, is damaged, or names something else than numbers and tensors.
        OutOfMemory: the host has too little memory for it.
    """
    _require_plain_zip(content, name)
    try:
        with torch.serialization.safe_globals(_numpy_types()):
            parsed: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _REFUSED as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name} does not fit into the host's memory") from error
        raise BadArchive(f"{name} is damaged, or holds more than numbers and tensors, and is not read") from error
    if not isinstance(parsed, dict) or not set(REQUIRED) <= cast("dict[str, Any]", parsed).keys():
        raise BadArchive(f"{name} is not an nnU-Net checkpoint")
    found = cast("dict[str, Any]", parsed)
    network = found["network_weights"]
    if not isinstance(network, dict) or not network:
        raise BadArchive(f"{name} holds no network")
    if not all(isinstance(tensor, torch.Tensor) for tensor in cast("dict[str, object]", network).values()):
        raise BadArchive(f"{name} holds something else than tensors as its network")
    return found


def trusted_checkpoint(content: bytes, name: str) -> Mapping[str, Any]:
    """The checkpoint in `content`, whose digest was checked; what the manifest vouches for is not run either.

    Raises:
        Broken: as `read_checkpoint`.
        OutOfMemory: the host has too little memory for it.
    """
    try:
        return read_checkpoint(content, name)
    except BadArchive as error:
        raise Broken(error.detail) from error


def _require_plain_zip(content: bytes, name: str) -> None:
    """The file is a ZIP as torch writes it: uncompressed, for a compressed entry could unpack to any size."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadArchive(f"{name} is not a checkpoint that torch has written") from error
    if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > len(content) for member in members):
        raise BadArchive(f"{name} is compressed, which no checkpoint of torch is")


def tidy_checkpoint(path: Path) -> bool:
    """`path` can be read by torch's restricted unpickler as it is; True where it had to be rewritten for that.

    Rewritten, it holds what inference reads and nothing else. The tensors are the same, bit for bit.

    Raises:
        BadArchive, OutOfMemory: as `read_checkpoint`.
        OSError: it cannot be read or written.
    """
    content = path.read_bytes()
    found = read_checkpoint(content, path.name)
    if _reads_as_it_is(content):
        return False
    kept = {key: found[key] for key in _KEPT if key in found}
    kept["init_args"] = _plain(found["init_args"], 0)
    kept["trainer_name"] = str(found["trainer_name"])
    if "inference_allowed_mirroring_axes" in kept:
        kept["inference_allowed_mirroring_axes"] = _plain(kept["inference_allowed_mirroring_axes"], 0)
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    if not _reads_as_it_is(buffer.getvalue()):
        raise BadArchive(f"{path.name} cannot be brought into a form that is read without running it")
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(buffer.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    return True


def _reads_as_it_is(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _plain(value: object, depth: int) -> Any:  # noqa: ANN401
    """Only what JSON knows, tuples beside; numbers of numpy become Python's, anything else becomes None."""
    if depth > _MAX_DEPTH:
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic | np.ndarray):
        return cast(Any, value).tolist()
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_plain(item, depth + 1) for item in cast("list[object]", value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    return None
