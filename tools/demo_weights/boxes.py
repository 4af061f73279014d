"""The box that the crop model 298 really gives for a head, so that 150 trains on what it will meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from heimdallr_ray.segmentation.demo import anatomy
from heimdallr_ray.segmentation.demo.phantom import Phantom
from tools.demo_weights.cases import BLEED_CROP_MARGIN_MM, BrainBox
from tools.demo_weights.network import Trainee
from tools.demo_weights.recipes import RECIPES


def predicted_brain_box(weights: Path) -> BrainBox:
    """A function from head to crop box: 298 at 6 mm in one tile, its brain's bounding box, 20 mm added."""
    recipe = RECIPES[298]
    trainee = Trainee(recipe)
    file = weights / recipe.model_path / "fold_0" / "checkpoint_final.pth"
    trainee.net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["network_weights"])
    trainee.net.eval()
    low, high = recipe.window_hu

    def box(head: Phantom) -> tuple[slice, slice, slice] | None:
        spacing = np.diag(head.affine_ras)[:3]
        target = [max(1, round(n * s / 6.0)) for n, s in zip(head.hu.shape, spacing, strict=True)]
        factors = [t / n for t, n in zip(target, head.hu.shape, strict=True)]
        coarse = np.asarray(ndimage.zoom(head.hu.astype(np.float32), factors, order=1))
        image = ((np.clip(coarse, low, high) - low) / recipe.scale_hu).transpose(2, 1, 0)
        missing = [max(want - have, -have % 8) for want, have in zip(recipe.patch_zyx, image.shape, strict=True)]
        pad = [(m // 2, m - m // 2) for m in missing]
        with torch.inference_mode():
            logits = trainee.net(torch.from_numpy(np.pad(image, pad).astype(np.float32))[None, None])
        labels = logits[0].argmax(0).numpy()
        labels = labels[tuple(slice(p[0], p[0] + n) for p, n in zip(pad, image.shape, strict=True))].transpose(2, 1, 0)
        where = np.nonzero(labels == anatomy.BRAIN)
        if not len(where[0]):
            return None
        found: list[slice] = []
        for index, factor, step, length in zip(where, factors, spacing, head.hu.shape, strict=True):
            margin = int(BLEED_CROP_MARGIN_MM / step)
            first, last = int(index.min() / factor), int((index.max() + 1) / factor)
            found.append(slice(max(0, first - margin), min(length, last + margin)))
        return found[0], found[1], found[2]

    return box
