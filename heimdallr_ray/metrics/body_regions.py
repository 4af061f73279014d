"""Which regions of the body the scan covers, by the structures found in it.

A region counts where enough of its own structures is there: a crumb of one label is not a head. The least volumes
decide what is run and shown, they are not clinical limits.
"""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, Reading, measured
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "body_regions"
DEFINITION_VERSION = 1
TASK = "total"
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "1", (TASK,)),)

_LUNGS = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
REGIONS: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "head": ((("brain",), 100.0), (("skull",), 100.0)),
    "neck": ((("vertebrae_C3", "vertebrae_C4", "vertebrae_C5", "vertebrae_C6"), 10.0), (("thyroid_gland",), 3.0)),
    "thorax": ((_LUNGS, 500.0), (("heart",), 100.0)),
    "abdomen": (
        (("liver",), 200.0),
        (("spleen",), 50.0),
        (("kidney_right", "kidney_left"), 50.0),
        (("vertebrae_L1", "vertebrae_L2", "vertebrae_L3"), 60.0),
    ),
    "pelvis": ((("hip_left", "hip_right"), 100.0), (("sacrum",), 50.0), (("urinary_bladder",), 30.0)),
    "thighs": ((("femur_left", "femur_right"), 300.0),),
}
"""From head to foot: any one group of structures that reaches its millilitres is enough."""


def covered_regions(volumes_ml: dict[str, float]) -> tuple[str, ...]:
    """The regions that these structure volumes are enough for, from head to foot."""
    return tuple(
        region
        for region, groups in REGIONS.items()
        if any(sum(volumes_ml.get(name, 0.0) for name in names) >= least for names, least in groups)
    )


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """The number of covered regions; evidence `regions` names them, joined by commas."""

    def read() -> Reading:
        found = context.statistics(TASK)
        regions = covered_regions({name: one.volume_ml for name, one in found.items()})
        n_voxels = sum(one.n_voxels for one in found.values())
        return Reading(float(len(regions)), n_voxels, (), {"regions": ",".join(regions)})

    return (measured(context, QUANTITIES[0], read),)
