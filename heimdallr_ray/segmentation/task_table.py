"""The table of segmentation tasks: models, spacing, crop, postprocessing, licence, and which of our backends runs each.

Numbers, folders, trainers and parameters are those of TotalSegmentator 2.18 (`map_tasks_config.py`, `python_api.py`); a
test compares every row with the installed package. Pure data: no torch, no disk, no import of TotalSegmentator.
"""

from __future__ import annotations

from typing import Final

from heimdallr_ray.segmentation.specs import UPSTREAM, CropSpec, ModelSpec, Spacing, TaskSpec

FIRST_PASS: Final = "total_fastest"  # noqa: S105
TOTAL_FAST: Final = "total_fast"
TISSUE_TYPES: Final = "tissue_types"
CEREBRAL_BLEED: Final = "cerebral_bleed"
TOTAL_MR_FAST: Final = "total_mr_fast"
BODY_FAST: Final = "body_fast"

_PLAIN: Final = "nnUNetTrainer"
_NO_MIRROR: Final = "nnUNetTrainerNoMirroring"
_LONG: Final = "nnUNetTrainer_4000epochs_NoMirroring"
_MR: Final = "nnUNetTrainer_2000epochs_NoMirroring"
_ORD0: Final = "nnUNetTrainer_DASegOrd0"
_ORD0_NO_MIRROR: Final = "nnUNetTrainer_DASegOrd0_NoMirroring"
_SKELETON: Final = "nnUNetTrainerSkeletonRecall"
_HIGH: Final = "3d_fullres_high"

_LUNGS: Final = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
_NECK: Final = (
    "clavicula_left",
    "clavicula_right",
    "vertebrae_C1",
    "vertebrae_C5",
    "vertebrae_T1",
    "vertebrae_T4",
)
_TRUNK: Final = ("body_trunc",)
_LIMBS: Final = (("body_extremities", 50_000.0),)
_FINE: Final = (0.75, 0.75, 1.0)


def _one(
    number: int,
    folder: str,
    trainer: str,
    configuration: str = "3d_fullres",
    folds: tuple[int, ...] | None = (0,),
) -> tuple[ModelSpec, ...]:
    return (ModelSpec(number, f"Dataset{number:03d}_{folder}", trainer, configuration, folds=folds),)


def _rough(*structures: str, task: str = FIRST_PASS, margin_mm: float = 20.0) -> CropSpec:
    return CropSpec(task, structures, margin_mm)


def _parts(trainer: str, *parts: tuple[int, str]) -> tuple[ModelSpec, ...]:
    return tuple(ModelSpec(number, f"Dataset{number}_{folder}", trainer) for number, folder in parts)


_CT_PARTS: Final = (
    (291, "TotalSegmentator_part1_organs_1559subj"),
    (292, "TotalSegmentator_part2_vertebrae_1532subj"),
    (293, "TotalSegmentator_part3_cardiac_1559subj"),
    (294, "TotalSegmentator_part4_muscles_1559subj"),
    (295, "TotalSegmentator_part5_ribs_1559subj"),
)
_MR_PARTS: Final = ((850, "TotalSegMRI_part1_organs_1088subj"), (851, "TotalSegMRI_part2_muscles_1088subj"))
_V3_PARTS: Final = (
    (831, "TotalSegmentator_part1_organs_1830subj"),
    (832, "TotalSegmentator_part2_vertebrae_1559subj"),
    (833, "TotalSegmentator_part3_cardiac_1830subj"),
    (834, "TotalSegmentator_part4_muscles_1830subj"),
    (835, "TotalSegmentator_part5_ribs_1559subj"),
)

_TOTAL_ROWS: Final = (
    TaskSpec(
        FIRST_PASS,
        "total",
        _one(298, "TotalSegmentator_total_6mm_1559subj", _LONG),
        6.0,
        fastest=True,
        tile_step=0.8,
    ),
    TaskSpec(
        TOTAL_FAST, "total", _one(297, "TotalSegmentator_total_3mm_1559subj", _LONG), 3.0, fast=True, tile_step=0.8
    ),
    TaskSpec("total", "total", _parts(_NO_MIRROR, *_CT_PARTS), 1.5, tile_step=0.8),
    TaskSpec(TISSUE_TYPES, "tissue_types", _one(481, "tissue_1559subj", _PLAIN), 1.5, licence=True),
    TaskSpec(CEREBRAL_BLEED, "cerebral_bleed", _one(150, "icb_v0", _PLAIN), crop=_rough("brain")),
    TaskSpec(
        TOTAL_MR_FAST,
        "total_mr",
        _one(852, "TotalSegMRI_total_3mm_1088subj", _MR),
        3.0,
        "MR",
        fast=True,
        tile_step=0.8,
    ),
    TaskSpec(
        "total_mr_fastest",
        "total_mr",
        _one(853, "TotalSegMRI_total_6mm_1088subj", _MR),
        6.0,
        "MR",
        fastest=True,
        tile_step=0.8,
    ),
    TaskSpec("total_mr", "total_mr", _parts(_MR, *_MR_PARTS), 1.5, "MR", tile_step=0.8),
    TaskSpec(
        BODY_FAST,
        "body",
        _one(300, "body_6mm_1559subj", _PLAIN),
        6.0,
        fast=True,
        largest_blob=_TRUNK,
        min_blob_mm3=_LIMBS,
    ),
    TaskSpec("body", "body", _one(299, "body_1559subj", _PLAIN), 1.5, largest_blob=_TRUNK, min_blob_mm3=_LIMBS),
)
_RESIDENT_ROWS: Final = (
    TaskSpec("vertebrae_body", "vertebrae_body", _one(305, "vertebrae_discs_1559subj", _ORD0), 1.5),
    TaskSpec("trunk_cavities", "trunk_cavities", _one(343, "mediastinum_1786subj", _PLAIN), 1.5),
    TaskSpec(
        "lung_nodules",
        "lung_nodules",
        _one(913, "lung_nodules", "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring"),
        1.5,
        crop=_rough(*_LUNGS),
    ),
    TaskSpec(
        "pleural_pericard_effusion",
        "pleural_pericard_effusion",
        _one(315, "thoraxCT", _PLAIN, folds=None),
        crop=_rough(*_LUNGS),
    ),
    TaskSpec(
        "lung_vessels",
        "lung_vessels",
        _one(117, "lung_airways_arteries_veins_282subj", _SKELETON),
        (0.703125, 0.703125, 1.0),
        crop=_rough(*_LUNGS, task=TOTAL_FAST),
    ),
    TaskSpec(
        "liver_segments",
        "liver_segments",
        _one(570, "ct_liver_segments", _NO_MIRROR),
        (0.8046879768371582, 0.8046879768371582, 1.5),
        crop=_rough("liver"),
    ),
    TaskSpec(
        "liver_lesions",
        "liver_lesions",
        _one(591, "ct_liver_lesions_842subj", _PLAIN, _HIGH),
        _FINE,
        crop=_rough("liver", task=TOTAL_FAST),
    ),
    TaskSpec(
        "kidney_cysts",
        "kidney_cysts",
        _one(789, "kidney_cyst_501subj", _ORD0_NO_MIRROR),
        1.5,
        crop=_rough("kidney_left", "kidney_right", "liver", "spleen", "colon"),
    ),
    TaskSpec(
        "ventricle_parts",
        "ventricle_parts",
        _one(552, "ventricle_parts_38subj", _NO_MIRROR),
        (0.4384765625, 0.4345703125, 1.0),
        crop=_rough("brain"),
    ),
    TaskSpec(
        "abdominal_muscles",
        "abdominal_muscles",
        _one(952, "abdominal_muscles_167subj", _ORD0_NO_MIRROR, _HIGH),
        _FINE,
        crop=_rough("body_trunc", task=BODY_FAST),
    ),
    TaskSpec(
        "headneck_bones_vessels",
        "headneck_bones_vessels",
        _one(776, "headneck_bones_vessels_492subj", _ORD0_NO_MIRROR, _HIGH),
        _FINE,
        crop=_rough(*_NECK),
    ),
    TaskSpec(
        "liver_segments_mr",
        "liver_segments_mr",
        _one(576, "mri_liver_segments_120subj", _ORD0_NO_MIRROR),
        (1.1250001788139343, 1.1875, 3.0),
        "MR",
        crop=_rough("liver", task=TOTAL_MR_FAST),
    ),
)


def _outside(
    name: str,
    models: tuple[ModelSpec, ...],
    spacing: Spacing | None = None,
    modality: str = "CT",
    *,
    upstream_task: str = "",
    mode: str = "",
    crop: CropSpec | None = None,
    licence: bool = False,
    needs: tuple[str, ...] = (),
) -> TaskSpec:
    """A row that TotalSegmentator's own entry point runs."""
    return TaskSpec(
        name,
        upstream_task or name,
        models,
        spacing,
        modality,
        fast=mode == "fast",
        fastest=mode == "fastest",
        tile_step=0.8 if upstream_task == "total_v3" else 0.5,
        crop=crop,
        licence=licence,
        needs=needs,
        backend=UPSTREAM,
    )


_FIVE: Final = (0, 1, 2, 3, 4)
_SPINE: Final = _one(803, "TotalSegmentator_vertebrae_inner_1559subj", _NO_MIRROR)
_THIGH: Final = _one(857, "TotalSegMRI_thigh_shoulder_1088subj", _MR)
_V3: Final = "total_v3"

_UPSTREAM_ROWS: Final = (
    _outside(
        "total_v3_fastest",
        _one(837, "TotalSegmentator_total_6mm_1559subj", _LONG),
        6.0,
        upstream_task=_V3,
        mode="fastest",
    ),
    _outside(
        "total_v3_fast",
        _one(836, "TotalSegmentator_total_3mm_1559subj", _LONG),
        3.0,
        upstream_task=_V3,
        mode="fast",
    ),
    _outside(_V3, _parts(_NO_MIRROR, *_V3_PARTS), 1.5, upstream_task=_V3),
    _outside("body_mr_fast", _one(598, "mri_body_6mm_139subj", _ORD0), 6.0, "MR", upstream_task="body_mr", mode="fast"),
    _outside("body_mr", _one(597, "mri_body_139subj", _ORD0), 1.5, "MR"),
    _outside("lung_vessels_LEGACY", _one(258, "lung_vessels_248subj", _PLAIN), crop=_rough(*_LUNGS)),
    _outside(
        "hip_implant",
        _one(260, "hip_implant_71subj", _PLAIN),
        crop=_rough("femur_left", "femur_right", "hip_left", "hip_right"),
    ),
    _outside("vertebrae_mr", _one(756, "mri_vertebrae_1076subj", _ORD0_NO_MIRROR), 1.5, "MR"),
    _outside("liver_vessels", _one(8, "HepaticVessel", _PLAIN), crop=_rough("liver")),
    _outside(
        "head_glands_cavities",
        _one(775, "head_glands_cavities_492subj", _ORD0_NO_MIRROR, _HIGH),
        _FINE,
        crop=_rough("skull"),
    ),
    _outside("head_muscles", _one(777, "head_muscles_492subj", _ORD0_NO_MIRROR, _HIGH), _FINE, crop=_rough("skull")),
    _outside(
        "headneck_muscles",
        _one(778, "headneck_muscles_part1_492subj", _ORD0_NO_MIRROR, _HIGH)
        + _one(779, "headneck_muscles_part2_492subj", _ORD0_NO_MIRROR, _HIGH),
        _FINE,
        crop=_rough(*_NECK),
    ),
    _outside(
        "oculomotor_muscles",
        _one(351, "oculomotor_muscles_18subj", _ORD0_NO_MIRROR),
        (0.47251562774181366, 0.47251562774181366, 0.8500002026557922),
        crop=_rough("skull"),
    ),
    _outside("breasts", _one(527, "breasts_1559subj", _ORD0_NO_MIRROR), 1.5),
    _outside(
        "liver_lesions_mr",
        _one(589, "ct_mri_liver_lesions_750subj", _ORD0),
        (0.8603515625, 0.857421875, 1.0),
        "MR",
        crop=_rough("liver", task=TOTAL_MR_FAST),
    ),
    _outside("craniofacial_structures", _one(115, "mandible", _ORD0_NO_MIRROR), 0.5, crop=_rough("skull")),
    _outside(
        "teeth",
        _one(113, "ToothFairy3", "nnUNetTrainer_onlyMirror01", "3d_lowres_high"),
        0.5,
        crop=_rough("teeth_lower", "teeth_upper", task="craniofacial_structures", margin_mm=10.0),
    ),
    _outside(
        "brain_aneurysm",
        _one(615, "MAXIMUS", "nnUNetTrainerDiceTopK10Loss_2000epochs", folds=None),
        (0.390625, 0.390625, 0.5000016391277313),
        "MR",
    ),
    _outside("vertebrae_pp", _SPINE, 1.5),
    _outside("vertebrae_pp_refined", _SPINE, 1.5, needs=("vertebrae_body",)),
    _outside(
        "heartchambers_highres",
        _one(301, "heart_highres_1559subj", _PLAIN),
        crop=_rough("heart", task=TOTAL_FAST),
        licence=True,
    ),
    _outside("appendicular_bones", _one(304, "appendicular_bones_ext_1559subj", _NO_MIRROR), 1.5, licence=True),
    _outside(
        "appendicular_bones_mr", _one(855, "TotalSegMRI_appendicular_bones_1088subj", _MR), 1.5, "MR", licence=True
    ),
    _outside("tissue_types_mr", _one(925, "MRI_tissue_subset_903subj", _ORD0_NO_MIRROR), 1.5, "MR", licence=True),
    _outside("tissue_4_types", _one(485, "tissue_4types_1559subj", _PLAIN), 1.5, licence=True),
    _outside("face", _one(303, "face_1559subj", _NO_MIRROR), 1.5, licence=True),
    _outside("face_mr", _one(856, "TotalSegMRI_face_1088subj", _MR), 1.5, "MR", licence=True),
    _outside(
        "brain_structures",
        _one(409, "neuro_550subj", _ORD0, _HIGH),
        (0.5, 0.5, 1.0),
        crop=_rough("brain"),
        licence=True,
    ),
    _outside("thigh_shoulder_muscles", _THIGH, 1.5, licence=True),
    _outside("thigh_shoulder_muscles_mr", _THIGH, 1.5, "MR", licence=True),
    _outside(
        "coronary_arteries",
        _one(509, "coronary_arteries_cm_nativ_400subj_SKELETON", _SKELETON, _HIGH),
        0.7,
        crop=_rough("heart"),
        licence=True,
    ),
    _outside(
        "coronary_arteries_LEGACY",
        _one(507, "coronary_arteries_cm_nativ_400subj", _ORD0_NO_MIRROR, _HIGH),
        0.7,
        crop=_rough("heart"),
        licence=True,
    ),
    _outside(
        "aortic_sinuses",
        _one(920, "aortic_sinuses_cm_nativ_400subj", _ORD0_NO_MIRROR, _HIGH),
        0.7,
        crop=_rough("heart"),
        licence=True,
    ),
    _outside("renal_arteries", _one(710, "renal_arteries_127subj", _ORD0_NO_MIRROR), 1.5, licence=True),
    _outside("aorta_annulus", _one(713, "annulus_proper_48subj", _ORD0, _HIGH, _FIVE), 0.8, licence=True),
    _outside(
        "aortic_dissection",
        _one(716, "aorta_true_false_lumen_171subj", _ORD0_NO_MIRROR, _HIGH, _FIVE),
        0.8,
        licence=True,
    ),
    _outside(
        "pulmonary_artery_landmarks",
        _one(514, "annulus_pulmonary_70subj", _PLAIN, folds=_FIVE),
        (0.7802734375, 0.7802734375, 1.0),
        licence=True,
    ),
)

ROWS: Final = _TOTAL_ROWS + _RESIDENT_ROWS + _UPSTREAM_ROWS
