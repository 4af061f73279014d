"""Where TotalSegmentator's weights come from: one archive per data set, as version 2.18 of the package names them.

A test compares this table with the installed package. Digests are not in it, because upstream publishes none: the first
import that a site trusts pins them in its manifest. Left out are models that upstream has not released.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final

from heimdallr_ray.errors import NotFound

FETCH: Final = "heimdallr models fetch"
RELEASES: Final = "https://github.com/wasserth/TotalSegmentator/releases/download"
LICENCE_SERVER: Final = "https://backend.totalsegmentator.com/download_weights"
"""Hands out the archives of licensed models to those who send it a licence number."""


@dataclass(frozen=True)
class Archive:
    """One ZIP of TotalSegmentator.

    Attributes:
        dataset_id: number of the data set.
        folder: the folder in it, and in a registry.
        release: release on GitHub that carries it; empty where the licence server hands it out.
        licence_task: name under which the licence server knows it; empty for open models.
        commercial_use: its terms allow it; TotalSegmentator's README excepts one of the open models.
    """

    dataset_id: int
    folder: str
    release: str = ""
    licence_task: str = ""
    commercial_use: bool = True

    @property
    def licensed(self) -> bool:
        """It is given to holders of a licence only."""
        return not self.release

    @property
    def file_name(self) -> str:
        """Name of the ZIP."""
        return f"{self.folder}.zip"

    @property
    def address(self) -> str:
        """Where upstream offers it."""
        return LICENCE_SERVER if self.licensed else f"{RELEASES}/{self.release}/{self.file_name}"

    def mirrored(self, base: str) -> str:
        """Where a mirror of the site offers it: all ZIPs in one folder below `base`."""
        return f"{base.rstrip('/')}/{self.file_name}"


_ROWS: Final = (
    Archive(8, "Dataset008_HepaticVessel", "v2.4.0-weights"),
    Archive(113, "Dataset113_ToothFairy3", "v2.5.0-weights"),
    Archive(115, "Dataset115_mandible", "v2.5.0-weights"),
    Archive(117, "Dataset117_lung_airways_arteries_veins_282subj", "v2.5.0-weights"),
    Archive(150, "Dataset150_icb_v0", "v2.0.0-weights"),
    Archive(258, "Dataset258_lung_vessels_248subj", "v2.0.0-weights"),
    Archive(260, "Dataset260_hip_implant_71subj", "v2.0.0-weights"),
    Archive(291, "Dataset291_TotalSegmentator_part1_organs_1559subj", "v2.0.0-weights"),
    Archive(292, "Dataset292_TotalSegmentator_part2_vertebrae_1532subj", "v2.0.0-weights"),
    Archive(293, "Dataset293_TotalSegmentator_part3_cardiac_1559subj", "v2.0.0-weights"),
    Archive(294, "Dataset294_TotalSegmentator_part4_muscles_1559subj", "v2.0.0-weights"),
    Archive(295, "Dataset295_TotalSegmentator_part5_ribs_1559subj", "v2.0.0-weights"),
    Archive(297, "Dataset297_TotalSegmentator_total_3mm_1559subj", "v2.0.0-weights"),
    Archive(298, "Dataset298_TotalSegmentator_total_6mm_1559subj", "v2.0.0-weights"),
    Archive(299, "Dataset299_body_1559subj", "v2.0.0-weights"),
    Archive(300, "Dataset300_body_6mm_1559subj", "v2.0.0-weights"),
    Archive(301, "Dataset301_heart_highres_1559subj", licence_task="heartchambers_highres"),
    Archive(303, "Dataset303_face_1559subj", licence_task="face"),
    Archive(304, "Dataset304_appendicular_bones_ext_1559subj", licence_task="appendicular_bones"),
    Archive(305, "Dataset305_vertebrae_discs_1559subj", "v2.5.0-weights"),
    Archive(315, "Dataset315_thoraxCT", "v2.0.0-weights"),
    Archive(343, "Dataset343_mediastinum_1786subj", "v2.5.0-weights"),
    Archive(351, "Dataset351_oculomotor_muscles_18subj", "v2.4.0-weights"),
    Archive(409, "Dataset409_neuro_550subj", licence_task="brain_structures"),
    Archive(481, "Dataset481_tissue_1559subj", licence_task="tissue_types"),
    Archive(485, "Dataset485_tissue_4types_1559subj", licence_task="tissue_4_types"),
    Archive(507, "Dataset507_coronary_arteries_cm_nativ_400subj", licence_task="coronary_arteries_LEGACY"),
    Archive(509, "Dataset509_coronary_arteries_cm_nativ_400subj_SKELETON", licence_task="coronary_arteries"),
    Archive(514, "Dataset514_annulus_pulmonary_70subj", licence_task="pulmonary_artery_landmarks"),
    Archive(527, "Dataset527_breasts_1559subj", "v2.5.0-weights"),
    Archive(552, "Dataset552_ventricle_parts_38subj", "v2.5.0-weights"),
    Archive(570, "Dataset570_ct_liver_segments", "v2.5.0-weights"),
    Archive(576, "Dataset576_mri_liver_segments_120subj", "v2.5.0-weights"),
    Archive(589, "Dataset589_ct_mri_liver_lesions_750subj", "v2.5.0-weights"),
    Archive(591, "Dataset591_ct_liver_lesions_842subj", "v2.5.0-weights"),
    Archive(597, "Dataset597_mri_body_139subj", "v2.5.0-weights"),
    Archive(598, "Dataset598_mri_body_6mm_139subj", "v2.5.0-weights"),
    Archive(615, "Dataset615_MAXIMUS", "v2.5.0-weights", commercial_use=False),
    Archive(710, "Dataset710_renal_arteries_127subj", licence_task="renal_arteries"),
    Archive(713, "Dataset713_annulus_proper_48subj", licence_task="aorta_annulus"),
    Archive(716, "Dataset716_aorta_true_false_lumen_171subj", licence_task="aortic_dissection"),
    Archive(756, "Dataset756_mri_vertebrae_1076subj", "v2.5.0-weights"),
    Archive(775, "Dataset775_head_glands_cavities_492subj", "v2.3.0-weights"),
    Archive(776, "Dataset776_headneck_bones_vessels_492subj", "v2.3.0-weights"),
    Archive(777, "Dataset777_head_muscles_492subj", "v2.3.0-weights"),
    Archive(778, "Dataset778_headneck_muscles_part1_492subj", "v2.3.0-weights"),
    Archive(779, "Dataset779_headneck_muscles_part2_492subj", "v2.3.0-weights"),
    Archive(789, "Dataset789_kidney_cyst_501subj", "v2.5.0-weights"),
    Archive(803, "Dataset803_TotalSegmentator_vertebrae_inner_1559subj", "v2.5.0-weights"),
    Archive(831, "Dataset831_TotalSegmentator_part1_organs_1830subj", "v3.0.0-weights"),
    Archive(832, "Dataset832_TotalSegmentator_part2_vertebrae_1559subj", "v3.0.0-weights"),
    Archive(833, "Dataset833_TotalSegmentator_part3_cardiac_1830subj", "v3.0.0-weights"),
    Archive(834, "Dataset834_TotalSegmentator_part4_muscles_1830subj", "v3.0.0-weights"),
    Archive(835, "Dataset835_TotalSegmentator_part5_ribs_1559subj", "v3.0.0-weights"),
    Archive(836, "Dataset836_TotalSegmentator_total_3mm_1559subj", "v3.0.0-weights"),
    Archive(837, "Dataset837_TotalSegmentator_total_6mm_1559subj", "v3.0.0-weights"),
    Archive(850, "Dataset850_TotalSegMRI_part1_organs_1088subj", "v2.5.0-weights"),
    Archive(851, "Dataset851_TotalSegMRI_part2_muscles_1088subj", "v2.5.0-weights"),
    Archive(852, "Dataset852_TotalSegMRI_total_3mm_1088subj", "v2.5.0-weights"),
    Archive(853, "Dataset853_TotalSegMRI_total_6mm_1088subj", "v2.5.0-weights"),
    Archive(855, "Dataset855_TotalSegMRI_appendicular_bones_1088subj", licence_task="appendicular_bones_mr"),
    Archive(856, "Dataset856_TotalSegMRI_face_1088subj", licence_task="face_mr"),
    Archive(857, "Dataset857_TotalSegMRI_thigh_shoulder_1088subj", licence_task="thigh_shoulder_muscles_mr"),
    Archive(913, "Dataset913_lung_nodules", "v2.5.0-weights"),
    Archive(920, "Dataset920_aortic_sinuses_cm_nativ_400subj", licence_task="aortic_sinuses"),
    Archive(925, "Dataset925_MRI_tissue_subset_903subj", licence_task="tissue_types_mr"),
    Archive(952, "Dataset952_abdominal_muscles_167subj", "v2.5.0-weights"),
)
ARCHIVES: Final = {row.dataset_id: row for row in _ROWS}
_BY_FOLDER: Final = {row.folder: row for row in _ROWS}


def archive_of(dataset_id: int) -> Archive:
    """The archive of a data set.

    Raises:
        NotFound: upstream offers none.
    """
    try:
        return ARCHIVES[dataset_id]
    except KeyError as error:
        raise NotFound(f"TotalSegmentator offers no archive of data set {dataset_id}") from error


def archive_named(folder: str) -> Archive | None:
    """The archive that holds the folder `folder`; None where it is none of TotalSegmentator's."""
    return _BY_FOLDER.get(folder)


def fetch_command(names: Iterable[str], into: Path | None = None) -> str:
    """The line that installs what tasks need, to be copied into a shell.

    Args:
        names: tasks, or numbers or folders of data sets.
        into: the registry; None: that of the settings in force where it is typed.
    """
    place = ("--into", quote(str(into))) if into is not None else ()
    return " ".join((FETCH, *dict.fromkeys(names), *place))
