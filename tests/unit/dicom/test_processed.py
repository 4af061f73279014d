"""What is no plain CT is not measured as one: vendors' maps, monoenergetic images, projections and renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.rules import default_rules
from heimdallr_ray.dicom.series import IndexedInstance, Purpose, Selection, group, select
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_study

PLAIN = [read_header(content) for content in ct_study(12, PixelSpacing=["12", "12"])]


def series(name: str, number: int = 1, *, types: Sequence[str] = (), rescale: str = "") -> list[IndexedInstance]:
    """A series of CT by its headers alone; what is not given is that of a plain axial one."""
    made: list[IndexedInstance] = []
    for k, header in enumerate(PLAIN):
        changed = replace(
            header,
            series_uid=Uid.derived(name, str(number)),
            sop_uid=Uid.derived(name, str(number), str(k)),
            series_number=number,
            series_description=name,
            image_type=tuple(types) or ("ORIGINAL", "PRIMARY", "AXIAL"),
            planes=tuple(replace(plane, rescale_type=rescale) for plane in header.planes),
        )
        made.append(IndexedInstance(changed, f"{name}-{number}-{k}", 1 << 20))
    return made


def selected(*members: list[IndexedInstance], purpose: Purpose = "volume") -> tuple[Selection, dict[str, str]]:
    selection = select(group([one for member in members for one in member]), purpose)
    return selection, {item.description: item.code for item in selection.decisions}


@pytest.mark.parametrize("rescale", ["Z_EFF", "MGML", "HU_MOD", "OD", "ED", "EDW", "PCT", "MG/CM3"])
def test_values_in_other_units_are_never_measured(rescale: str) -> None:
    selection, codes = selected(series("map", rescale=rescale), series("plain", 2, rescale="HU"))
    assert codes == {"map": "not_hounsfield", "plain": "chosen"}
    refused = selection.decisions[0]
    assert rescale in refused.reason
    assert not refused.can_be_chosen


def test_one_image_of_another_unit_refuses_its_series() -> None:
    mixed = [*series("mixed", rescale="HU")[:-1], series("mixed", rescale="MGML")[-1]]
    assert selected(mixed)[1] == {"mixed": "not_hounsfield"}


@pytest.mark.parametrize("rescale", ["", "HU", "US"])
def test_hounsfield_units_and_what_does_not_say_are_measured(rescale: str) -> None:
    assert selected(series("plain", rescale=rescale))[1] == {"plain": "chosen"}


def test_the_rescale_type_is_read() -> None:
    assert read_header(ct_study(1, RescaleType="MGML")[0]).rescale_types == ("MGML",)
    assert read_header(ct_study(1, RescaleType=None)[0]).rescale_types == ()


@pytest.mark.parametrize(
    "types",
    [
        "DERIVED\\SECONDARY\\AXIAL\\Z EFFECTIVE", "DERIVED\\SECONDARY\\AXIAL\\Z_EFF",
        "DERIVED\\SECONDARY\\AXIAL\\MONOENERGETIC 40KEV", "DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 SPI\\MONO70",
        "ORIGINAL\\PRIMARY\\AXIAL\\MONOCHROMATIC", "DERIVED\\PRIMARY\\AXIAL\\VMI", "ORIGINAL\\PRIMARY\\AXIAL\\VMI",
        "DERIVED\\PRIMARY\\AXIAL\\MAT_SPECIFIC", "DERIVED\\PRIMARY\\AXIAL\\EFF_ATOMIC_NUM",
        "DERIVED\\PRIMARY\\AXIAL\\ELECTRON_DENSITY", "DERIVED\\PRIMARY\\AXIAL\\MAT_REMOVED",
        "DERIVED\\SECONDARY\\AXIAL\\GSI_MD_IODINE", "DERIVED\\SECONDARY\\AXIAL\\VNC", "DERIVED\\PRIMARY\\AXIAL\\RHO_Z",
        "DERIVED\\PRIMARY\\PERFUSION\\RCBF", "DERIVED\\SECONDARY\\CBF", "DERIVED\\SECONDARY\\OTHER\\TMAX",
        "DERIVED\\SECONDARY\\VOLREN", "DERIVED\\SECONDARY\\AXIAL\\BONE_REMOVED", "DERIVED\\SECONDARY\\AXIAL\\MIP",
        "DERIVED\\SECONDARY\\AXIAL\\MAX_IP", "DERIVED\\SECONDARY\\PROJECTION IMAGE", "DERIVED\\SECONDARY\\CSA MIP",
        "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", "DERIVED\\SECONDARY\\AXIAL\\3DANGIO\\SUBTRACTION",
    ],
)  # fmt: skip
def test_image_types_of_maps_and_projections_are_refused(types: str) -> None:
    selection, codes = selected(series("map", types=types.split("\\")), series("plain", 2))
    assert codes == {"map": "projection", "plain": "chosen"}
    assert "derived pixels" in selection.decisions[0].reason


@pytest.mark.parametrize(
    "types",
    [
        "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI", "DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 SPO",
        "ORIGINAL\\PRIMARY\\AXIAL\\HELIX",
        "ORIGINAL\\PRIMARY\\AXIAL\\ADD", "DERIVED\\PRIMARY\\AXIAL\\CT_SOM7 SPI DUAL\\M_0.5", "DERIVED\\PRIMARY\\AXIAL",
        "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM7 SPI DUAL\\DET_AB", "DERIVED\\SECONDARY\\AXIAL", "ORIGINAL\\SECONDARY\\AXIAL",
    ],
)  # fmt: skip
def test_image_types_of_plain_images_are_measured_without_penalty(types: str) -> None:
    selection, codes = selected(series("plain", types=types.split("\\")))
    assert codes == {"plain": "chosen"}
    assert dict(selection.decisions[0].score)["penalty"] == 0


def test_mixed_energies_are_preferred_to_one_of_them() -> None:
    low = series("mono", 1, types=["DERIVED", "PRIMARY", "AXIAL", "MONOENERGETIC 40KEV"])
    mixed = series("mixed", 2, types=["DERIVED", "PRIMARY", "AXIAL", "M_0.5"])
    assert selected(low, mixed)[1] == {"mono": "projection", "mixed": "chosen"}


def test_what_no_word_of_the_file_knows_comes_after_what_was_not_processed() -> None:
    new, plain = ["DERIVED", "SECONDARY", "AXIAL", "TISSUE PRO"], ["DERIVED", "SECONDARY", "AXIAL"]
    selection, codes = selected(series("new", 1, types=new), series("plain", 2, types=plain))
    assert codes == {"new": "outranked", "plain": "chosen"}
    assert "preferred by penalty" in selection.decisions[0].reason
    line = next(line for line in selection.decisions[0].lines if line.rule == "penalty")
    assert line.value == "image type TISSUE PRO"
    assert selected(series("new", 1, types=new))[1] == {"new": "chosen"}


@pytest.mark.parametrize("word", default_rules().file.profiles["ct_volume"].projection_words)
def test_every_word_of_the_file_is_found_in_a_description(word: str) -> None:
    names = (f"AX {word.upper()} 5.0", word, f"{word}_axial", f"abd-{word}")
    _, codes = selected(*(series(name) for name in names))
    assert codes == dict.fromkeys(names, "projection")


@pytest.mark.parametrize("word", ["vr", "avg", "average", "curved"])
@pytest.mark.parametrize(
    ("types", "code"),
    [
        ("ORIGINAL\\PRIMARY\\AXIAL", "chosen"),
        ("ORIGINAL\\SECONDARY", "chosen"),
        ("DERIVED\\PRIMARY\\AXIAL", "projection"),
        ("DERIVED\\SECONDARY", "projection"),
        ("", "projection"),
    ],
)
def test_a_doubtful_word_refuses_what_is_not_said_to_be_original(word: str, types: str, code: str) -> None:
    name = f"Abdomen {word} 3.0"
    assert selected(series(name, types=types.split("\\")))[1] == {name: code}


def test_an_original_series_with_a_doubtful_word_comes_after_one_without_and_explain_says_why() -> None:
    selection, codes = selected(series("Average dose"), series("plain", 2))
    assert codes == {"Average dose": "outranked", "plain": "chosen"}
    lines = {line.rule: line for line in selection.decisions[0].lines}
    assert lines["projection"].effect == "passed"
    assert (lines["penalty"].value, lines["penalty"].score) == ('the description says "average"', 1.0)
    assert lines["penalty"].effect == "decides"


def test_an_mr_that_is_called_an_average_is_measured_and_is_asked_for_no_unit() -> None:
    plain = series("T2 avg", rescale="MGML")
    mr = [replace(one, header=replace(one.header, sop_class_uid=None, modality="MR")) for one in plain]
    selection, codes = selected(mr)
    assert codes == {"T2 avg": "chosen"}
    rules = {line.rule: line for line in selection.decisions[0].lines}
    assert "not_hounsfield" not in rules
    assert rules["penalty"].value == 'the description says "avg"'


@pytest.mark.parametrize("purpose", ["lung", "bone"])
def test_every_purpose_of_ct_refuses_the_same_maps(purpose: Purpose) -> None:
    (ct,) = default_rules().profiles(purpose)
    volume = default_rules().file.profiles["ct_volume"]
    for key in ("rescale_types", "projection_types", "map_types", "projection_words", "doubtful_words"):
        assert getattr(ct, key) == getattr(volume, key), key
    _, codes = selected(series("map", rescale="MGML"), series("mips"), series("plain"), purpose=purpose)
    assert codes == {"map": "not_hounsfield", "mips": "projection", "plain": "chosen"}


@pytest.mark.parametrize(
    "name",
    ["AX THICK MIPS", "AXIAL MIPS", "COR MIP10", "MinIP 5.0", "MINIPS", "3D VRT", "VOLREN", "Thick MIP", "Mono+ 50keV",
     "CBF map", "40 KEV", "Z Effective", "Bone Removal", "Iodine Overlay", "VNC 1.5", "MIP_axial"],
)  # fmt: skip
def test_descriptions_of_projections_maps_and_renderings_are_refused(name: str) -> None:
    assert selected(series(name), series("plain", 2))[1] == {name: "projection", "plain": "chosen"}


@pytest.mark.parametrize(
    "name",
    ["hemipelvis", "CT Body 3.0", "STD BRAIN 5MM", "Routine Brain", "VRIES", "Monroe", "TAVR"],
)
def test_words_that_only_look_like_them_are_not(name: str) -> None:
    assert selected(series(name))[1] == {name: "chosen"}
