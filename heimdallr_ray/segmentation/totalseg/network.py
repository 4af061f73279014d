"""The network of one nnU-Net model, built from its description and filled with its weights, or a typed refusal.

What describes a network comes from a file: nnU-Net imports and calls the class that it names. Only nnU-Net's own
architectures and torch's layers are let through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch

from heimdallr_ray.errors import Broken, OutOfMemory
from heimdallr_ray.segmentation.specs import ModelSpec
from heimdallr_ray.segmentation.totalseg.environment import upstream_call
from heimdallr_ray.segmentation.totalseg.memory import is_out_of_memory

_CUSTOM_TRAINERS: Final = frozenset(
    {
        "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring",
        "nnUNetTrainerDiceTopK10Loss_2000epochs",
        "nnUNetTrainerSkeletonRecall",
    }
)
"""Trainers that TotalSegmentator brings along and nnU-Net does not know."""
_ARCHITECTURES: Final = "dynamic_network_architectures.architectures."
_LAYERS: Final = "torch.nn."
_FAULTS: Final = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    RuntimeError,
)
"""What nnU-Net and torch answer with to files that do not fit together."""


@dataclass(frozen=True)
class Network:
    """A network with its weights, and what nnU-Net's files say of it.

    Attributes:
        module: the network.
        channels: of the image that it reads.
        labels: values that it tells apart, 0 left out.
        heads: channels of its answer.
        has_regions: its answer is one of overlapping regions, not of labels.
        patch_zyx: tile of the sliding window.
        spacing_zyx_mm: grid that it was trained on.
        masked: the image is normalised over the filled body only.
        forward_axes, backward_axes: order of the axes that it sees, and the way back.
        configuration: nnU-Net's, for its preprocessor.
        preprocessor: nnU-Net's.
        intensities: of the training images, per channel.
        resample_image, resample_logits: nnU-Net's functions.
    """

    module: torch.nn.Module
    channels: int
    labels: frozenset[int]
    heads: int
    has_regions: bool
    patch_zyx: tuple[int, ...]
    spacing_zyx_mm: tuple[float, ...]
    masked: bool
    forward_axes: tuple[int, ...]
    backward_axes: tuple[int, ...]
    configuration: Any
    preprocessor: Any
    intensities: Any
    resample_image: Any
    resample_logits: Any


def parsed_json(content: bytes, name: str) -> dict[str, Any]:
    """A description of nnU-Net.

    Raises:
        Broken: it is not a JSON object.
    """
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Broken(f"{name} is not JSON") from error
    if not isinstance(parsed, dict):
        raise Broken(f"{name} is not an object")
    return cast("dict[str, Any]", parsed)


def built(
    spec: ModelSpec,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> Network:
    """The network of `spec` on `device`, with the weights of the first of `checkpoints`; those of the others fit it.

    Args:
        spec: what the task table says of the model.
        plans: its plans.json.
        dataset: its dataset.json.
        checkpoints: one for each fold, as `checkpoint.read_checkpoint` gives them.
        device: torch's `meta` where only the shapes are of interest; nothing is allocated then.

    Raises:
        Broken: they are not an nnU-Net model of this trainer, or do not fit together; names the folder.
        OutOfMemory: the host has too little memory for it.
    """
    for one in checkpoints:
        if one["trainer_name"] != spec.trainer:
            raise Broken(f"{spec.folder} was made by another trainer than its folder says")
    try:
        with upstream_call(spec.model_id), device:
            return _built(spec, plans, dataset, checkpoints)
    except _FAULTS as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{spec.model_id} does not fit into the host's memory") from error
        raise Broken(
            f"{spec.folder} is no model that can be built: its plans.json, dataset.json and checkpoints do not fit "
            f"together ({type(error).__name__})"
        ) from error


def require_resident(spec: ModelSpec, network: Network) -> None:
    """Nothing happens where the resident engine runs such a network exactly.

    Raises:
        Broken: it does not.
    """
    if network.channels != 1 or network.has_regions:
        raise Broken(f"{spec.model_id} is of a kind that the resident engine does not run")


def _built(
    spec: ModelSpec, plans: Mapping[str, Any], dataset: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]]
) -> Network:
    from nnunetv2.utilities.label_handling.label_handling import (
        determine_num_input_channels,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import (
        PlansManager,
    )

    manager: Any = cast(Any, PlansManager)(dict(plans))
    configuration: Any = manager.get_configuration(checkpoints[0]["init_args"]["configuration"])
    _require_known_classes(spec, configuration)
    labels: Any = manager.get_label_manager(dict(dataset))
    channels = int(cast(Any, determine_num_input_channels)(manager, configuration, dict(dataset)))
    module: torch.nn.Module = _trainer_class(spec.trainer).build_network_architecture(
        manager, configuration, channels, labels.num_segmentation_heads, enable_deep_supervision=False
    )
    module.load_state_dict(checkpoints[0]["network_weights"])
    shapes = _shapes(checkpoints[0])
    if any(_shapes(one) != shapes for one in checkpoints[1:]):
        raise Broken(f"the folds of {spec.folder} are networks of different shapes")
    return Network(
        module=module,
        channels=channels,
        labels=frozenset(int(value) for value in labels.foreground_labels or ()),
        heads=int(labels.num_segmentation_heads),
        has_regions=bool(labels.has_regions),
        patch_zyx=tuple(int(n) for n in configuration.patch_size),
        spacing_zyx_mm=tuple(float(mm) for mm in configuration.spacing),
        masked=any(configuration.use_mask_for_norm),
        forward_axes=tuple(int(axis) for axis in manager.transpose_forward),
        backward_axes=tuple(int(axis) for axis in manager.transpose_backward),
        configuration=configuration,
        preprocessor=configuration.preprocessor_class(verbose=False),
        intensities=manager.foreground_intensity_properties_per_channel,
        # bound once: nnU-Net caches one of these per process, which several models defeat
        resample_image=configuration.resampling_fn_data,
        resample_logits=configuration.resampling_fn_probabilities,
    )


def _trainer_class(name: str) -> Any:  # noqa: ANN401
    if name in _CUSTOM_TRAINERS:
        import totalsegmentator.custom_trainers as custom

        return getattr(custom, name)
    from nnunetv2.utilities.find_objects import (
        recursive_find_trainer_class_by_name,
    )

    return cast(Any, recursive_find_trainer_class_by_name)(name)


def _require_known_classes(spec: ModelSpec, configuration: Any) -> None:  # noqa: ANN401
    """Everything that nnU-Net is about to import for the network is an architecture of its own or a layer of torch."""
    arguments = cast("Mapping[str, Any]", configuration.network_arch_init_kwargs)
    names = [arguments[key] for key in configuration.network_arch_init_kwargs_req_import]
    layers = all(name is None or str(name).startswith(_LAYERS) for name in names)
    if not layers or not str(configuration.network_arch_class_name).startswith(_ARCHITECTURES):
        raise Broken(f"{spec.folder}/plans.json names something else than an architecture of nnU-Net")


def _shapes(checkpoint: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    weights = cast("Mapping[str, torch.Tensor]", checkpoint["network_weights"])
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
