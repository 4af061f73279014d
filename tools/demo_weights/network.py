"""The network with a compact head: only classes that phantoms hold, only on sampled voxels, ten times cheaper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heimdallr_ray.segmentation.demo import anatomy
from tools.demo_weights.recipes import CONFIGURATION, UNUSED_BIAS, Recipe
from tools.nnunet_files import checkpoint


def used_classes(recipe: Recipe) -> list[int]:
    """Class values that phantoms hold, background first."""
    if recipe.task != "total":
        return list(range(len(recipe.classes) + 1))
    lungs = set(range(anatomy.LUNG_UPPER_LEFT, anatomy.LUNG_LOWER_RIGHT + 1))
    extra = {anatomy.BRAIN, anatomy.SKULL, anatomy.SPINAL_CORD}
    return sorted({o.label for o in anatomy.ORGANS} | set(anatomy.VERTEBRA_Z_MM) | lungs | extra | {0})


class Trainee(nn.Module):
    """nnU-Net's network whose last layer is replaced by a linear head over the used classes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.used = used_classes(recipe)
        self.net: Any = recipe.unet().network(len(recipe.classes) + 1)
        self.head = nn.Linear(recipe.features[0], len(self.used))
        self.norms_frozen = False
        self._hinges()

    def _first(self) -> nn.Module:
        return self.net.encoder.stages[0][0].convs[0].norm

    def _hinges(self) -> None:
        """The first layer starts as hinge functions of absolute HU, at knots between the tissues."""
        conv = self.net.encoder.stages[0][0].convs[0].conv
        low = self.recipe.window_hu[0]
        with torch.no_grad():
            for channel, (knot, scale) in enumerate(self.recipe.knots):
                conv.weight[channel] = self.recipe.scale_hu / scale
                conv.bias[channel] = (low - knot) / scale

    def train(self, mode: bool = True) -> Trainee:
        """Training mode, except that the first norm never, and after `norms_frozen` no norm, follows the batch."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm3d) and (self.norms_frozen or module is self._first()):
                module.eval()
        return self

    def grow_from(self, coarse: Trainee) -> None:
        """Begin as `coarse`, a trained network for half the resolution, whose labels come out twice as fine.

        Stage 0 computes the coarse net's per-voxel features at the fine grid and the first convolution of stage 1
        averages them over 2 x 2 x 2 voxels; deeper stages are the coarse net's; the last decoder stage repeats its
        result. Training then only has to refine borders, and norms stay frozen throughout.
        """
        fine, rough = self.net, coarse.net
        with torch.no_grad():
            fine.encoder.stages[0].load_state_dict(rough.encoder.stages[0].state_dict())
            pool, keep = fine.encoder.stages[1][0].convs
            channels = torch.arange(self.recipe.features[0])
            for block, centre in ((pool, slice(1, 3)), (keep, slice(1, 2))):
                _identity_norm(block)
                block.conv.weight.mul_(0.02)
                share = 1.0 / (centre.stop - centre.start) ** 3
                block.conv.weight[channels, channels, centre, centre, centre] = share
            for deep, source in zip(list(fine.encoder.stages)[2:], list(rough.encoder.stages)[1:], strict=True):
                deep.load_state_dict(source.state_dict())
            *same, last = rough.decoder.stages
            for number, source in enumerate(same):
                fine.decoder.stages[number].load_state_dict(source.state_dict())
            for number, source in enumerate(rough.decoder.transpconvs):
                fine.decoder.transpconvs[number].load_state_dict(source.state_dict())
            widened, source = fine.decoder.stages[len(same)].convs[0], last.convs[0]
            widened.norm.load_state_dict(source.norm.state_dict())
            widened.conv.weight.mul_(0.02)
            widened.conv.weight[:, :, 1, 1, 1] = source.conv.weight[:, :, 0, 0, 0]
            widened.conv.bias.copy_(source.conv.bias)
            up, refine = fine.decoder.transpconvs[-1], fine.decoder.stages[-1].convs[0]
            up.weight.mul_(0.02)
            up.weight[channels, channels] = 1.0
            up.bias.zero_()
            _identity_norm(refine)
            refine.conv.weight.mul_(0.02)
            refine.conv.weight[channels, channels] = 1.0
            self.head.load_state_dict(coarse.head.state_dict())

    def trained_parameters(self) -> list[nn.Parameter]:
        """All but nnU-Net's own last layer, which is written at export."""
        return [p for n, p in self.net.named_parameters() if "seg_layers" not in n] + list(self.head.parameters())

    def features(self, x: Tensor) -> Tensor:
        """`[n, c, z, y, x]` features before the last layer."""
        decoder = self.net.decoder
        skips = self.net.encoder(x)
        low = skips[-1]
        for stage, (up, conv) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
            low = conv(torch.cat((up(low), skips[-(stage + 2)]), 1))
        return low

    def export(self, model_folder: Path, cases: int) -> None:
        """Write plans, dataset and checkpoint; tensors that nnU-Net shares stay shared, which keeps the file small."""
        recipe = self.recipe
        last = self.net.decoder.seg_layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(UNUSED_BIAS)
            last.weight[self.used] = self.head.weight[:, :, None, None, None]
            last.bias[self.used] = self.head.bias
        (model_folder / "fold_0").mkdir(parents=True, exist_ok=True)
        (model_folder / "plans.json").write_text(json.dumps(recipe.plans(), indent=1) + "\n")
        (model_folder / "dataset.json").write_text(json.dumps(recipe.dataset(cases), indent=1) + "\n")
        plain: dict[int, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for name, tensor in self.net.state_dict().items():
            weights[name] = plain.setdefault(tensor.data_ptr(), tensor.detach().cpu().contiguous())
        torch.save(checkpoint(weights, recipe.trainer, CONFIGURATION), model_folder / "fold_0" / "checkpoint_final.pth")


def _identity_norm(block: nn.Module) -> None:
    """The block's norm passes values through, and its convolution adds nothing."""
    for part in block.children():
        if isinstance(part, nn.Conv3d) and part.bias is not None:
            part.bias.zero_()
        if isinstance(part, nn.BatchNorm3d):
            part.reset_parameters()


def sampled_loss(
    trainee: Trainee, features: Tensor, labels: Tensor, *, balanced: int, uniform: int, boost: float
) -> Tensor:
    """Cross entropy and soft Dice of the whole patch, estimated on voxels drawn evenly and per class.

    Each drawn voxel is weighed by how much more often it was drawn than an even draw would, so rare classes are
    sampled well without being favoured; favour would push every border outwards and make small organs too large.

    Args:
        trainee: holds the head.
        features: `[n, c, z, y, x]`.
        labels: `[n, z, y, x]` indices into the used classes.
        balanced: voxels drawn with equal chance per class.
        uniform: voxels drawn with equal chance per voxel.
        boost: share of a further cross entropy that does favour rare classes; helps them to appear at all.
    """
    flat = features.permute(0, 2, 3, 4, 1).reshape(-1, features.shape[1])
    truth = labels.reshape(-1)
    classes = len(trainee.used)
    counts = torch.bincount(truth, minlength=classes).float()
    chance = 1.0 / counts.clamp_min(30.0)
    chance[0] *= 3.0
    third = torch.multinomial(chance[truth[::3]], balanced, replacement=True) * 3
    index = torch.cat([torch.randint(len(truth), (uniform,), device=truth.device), third])
    logits = trainee.head(flat[index].float())
    target = truth[index]
    drawn = uniform / len(truth) + balanced * chance / (chance * counts).sum()
    weight = ((uniform + balanced) / len(truth) / drawn)[target]
    entropies = nn.functional.cross_entropy(logits, target, reduction="none")
    entropy = (weight * entropies).sum() / weight.sum() + boost * entropies[uniform:].mean()
    chances = logits.softmax(1)
    wanted = nn.functional.one_hot(target, classes).float() * weight[:, None]
    overlap, size = (chances * wanted).sum(0), (chances * weight[:, None]).sum(0) + wanted.sum(0)
    present = (wanted.sum(0) > 0)[1:]
    if not bool(present.any()):
        return entropy
    return entropy + (1.0 - (2.0 * overlap + 0.1) / (size + 0.1))[1:][present].mean()


def class_indices(trainee: Trainee) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Lookup from label value to position in the compact head."""
    lookup = np.zeros(256, np.int64)
    lookup[trainee.used] = np.arange(len(trainee.used))
    return lookup
