"""What lies at one place is told apart by each attribute of the standard that can, frame by frame, never by a guess."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.series import Series, group, select
from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_datasets, enhanced, hu_of, indexed, new_uid, pixels, set_pixels, to_bytes

N = 12


def stacks_of(datasets: Sequence[Dataset]) -> tuple[list[Series], Callable[[str], bytes]]:
    index, read = indexed(to_bytes(dataset) for dataset in datasets)
    return group(index), read


def phases(times: int, *, by: Callable[[Dataset, int], None] | None = None, slices: int = N) -> list[list[Dataset]]:
    """The same stack several times, each with values of its own; `by` tells them apart."""
    made: list[list[Dataset]] = []
    for phase in range(times):
        stack = [new_uid(dataset, str(phase)) for dataset in ct_datasets(slices)]
        for dataset in stack:
            set_pixels(dataset, pixels(dataset) + np.uint16(phase))
            dataset.InstanceNumber = 1
            if by is not None:
                by(dataset, phase)
        made.append(stack)
    return made


def flat(stacks: list[list[Dataset]]) -> list[Dataset]:
    return [dataset for stack in stacks for dataset in stack]


def trigger(dataset: Dataset, phase: int) -> None:
    dataset.TriggerTime = str(100 * phase)


def midnight(dataset: Dataset, phase: int) -> None:
    # The first phase before midnight, the second after it.
    dataset.AcquisitionDate, dataset.AcquisitionTime = ("20260102", "235950") if phase == 0 else ("20260103", "000010")


def combined_midnight(dataset: Dataset, phase: int) -> None:
    del dataset.AcquisitionDate, dataset.AcquisitionTime
    dataset.AcquisitionDateTime = "20260102235950" if phase == 0 else "20260103000010"


@pytest.mark.parametrize(
    "by",
    [
        pytest.param(lambda d, phase: setattr(d, "TemporalPositionIdentifier", 5 + phase), id="temporal position"),
        pytest.param(lambda d, phase: setattr(d, "TemporalPositionIndex", 1 + phase), id="temporal position index"),
        pytest.param(lambda d, phase: setattr(d, "TemporalPositionTimeOffset", 1.5 * phase), id="time offset"),
        pytest.param(lambda d, phase: setattr(d, "NominalPercentageOfCardiacPhase", 35.0 + phase), id="cardiac phase"),
        pytest.param(lambda d, phase: setattr(d, "NominalCardiacTriggerDelayTime", 20.0 * phase), id="trigger delay"),
        pytest.param(lambda d, phase: setattr(d, "AcquisitionNumber", 9 + phase), id="acquisition number"),
        pytest.param(trigger, id="trigger time"),
        pytest.param(lambda d, phase: setattr(d, "AcquisitionTime", f"1011{10 + phase}"), id="acquisition time"),
        pytest.param(midnight, id="across midnight"),
        pytest.param(combined_midnight, id="across midnight, date and time in one"),
        pytest.param(lambda d, phase: setattr(d, "ContentTime", f"1011{10 + phase}.5"), id="content time"),
    ],
)
def test_phases_are_told_apart_and_in_order_by(by: Callable[[Dataset, int], None]) -> None:
    made = phases(2, by=by)
    series, read = stacks_of(flat(made)[::-1])
    assert [(one.phase, one.phases, len(one.instances)) for one in series] == [(1, 2, N), (2, 2, N)]
    for one, stack in zip(series, made, strict=True):
        assert np.array_equal(assemble(one, read).array, hu_of(stack))


@pytest.mark.parametrize("place_by_place", [False, True])
def test_instance_numbers_tell_phases_apart_where_nothing_else_does(place_by_place: bool) -> None:
    made = phases(3)
    for phase, stack in enumerate(made):
        for k, dataset in enumerate(stack):
            dataset.InstanceNumber = 1 + (k * 3 + phase if place_by_place else phase * N + k)
    series, read = stacks_of(flat(made))
    assert [one.phase for one in series] == [1, 2, 3]
    assert np.array_equal(assemble(series[2], read).array, hu_of(made[2]))


def test_instance_numbers_without_an_order_tell_nothing() -> None:
    made = flat(phases(3))
    for number, dataset in zip(np.random.default_rng(0).permutation(len(made)), made, strict=True):
        dataset.InstanceNumber = int(number)
    series, read = stacks_of(made)
    assert len(series) == 1
    with pytest.raises(NotAVolume) as caught:
        assemble(series[0], read)
    assert caught.value.reason == "four_d"


def test_an_unfinished_phase_does_not_spoil_the_whole_ones() -> None:
    made = phases(3, by=lambda d, phase: setattr(d, "AcquisitionNumber", phase))
    series, read = stacks_of([*made[0], *made[1], *made[2][:5]])
    assert [len(one.instances) for one in series] == [N, N, 5]
    assert np.array_equal(assemble(series[1], read).array, hu_of(made[1]))


def test_overlapping_table_positions_are_no_phases() -> None:
    made = ct_datasets(2 * N)
    first, second = made[: N + 4], [new_uid(copy.deepcopy(dataset), "again") for dataset in made[N:]]
    for number, part in enumerate((first, second)):
        for dataset in part:
            dataset.AcquisitionNumber = number
    series, read = stacks_of([*first, *second])
    assert len(series) == 1
    with pytest.raises(NotAVolume) as caught:
        assemble(series[0], read)
    assert caught.value.reason == "incomplete_4d"


def test_a_scan_in_table_positions_is_one_stack() -> None:
    made = ct_datasets(2 * N)
    for k, dataset in enumerate(made):
        dataset.AcquisitionNumber = k // N
    series, read = stacks_of(made)
    assert np.array_equal(assemble(series[0], read).array, hu_of(made))


def test_two_acquisitions_between_each_others_slices_are_two_stacks() -> None:
    made = phases(2, by=lambda d, phase: setattr(d, "AcquisitionNumber", phase))
    for dataset in made[1]:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 0.5]
    series, read = stacks_of(flat(made))
    assert [one.phase for one in series] == [1, 2]
    volume = assemble(series[0], read)
    assert volume.spacing_mm[2] == pytest.approx(1.0)
    assert np.array_equal(volume.array, hu_of(made[0]))


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("ConvolutionKernel", ("BONE", "STANDARD")), ("KVP", ("80", "140"))],
)
def test_reconstructions_in_one_series_are_parts_and_not_phases(keyword: str, values: tuple[str, str]) -> None:
    made = phases(2, by=lambda d, phase: setattr(d, keyword, values[phase]))
    series, read = stacks_of(flat(made))
    assert [(one.phase, one.part, one.parts) for one in series] == [(None, 0, 2), (None, 1, 2)]
    assert {getattr(one.header, "kernel" if keyword != "KVP" else "kvp") for one in series} == (
        set(values) if keyword != "KVP" else {80.0, 140.0}
    )
    assert {assemble(one, read).shape for one in series} == {(24, 32, N)}


def test_a_long_time_series_is_split_no_further_and_refused_whole() -> None:
    series, _ = stacks_of(flat(phases(17, by=lambda d, phase: setattr(d, "AcquisitionNumber", phase), slices=3)))
    assert len(series) == 1
    ten, _ = stacks_of(flat(phases(10, by=lambda d, phase: setattr(d, "AcquisitionNumber", phase), slices=10)))
    assert len(ten) == 10
    assert {one.code for one in select(ten).decisions} == {"four_d"}


def test_two_frames_of_reference_never_become_one_volume() -> None:
    made = ct_datasets(2 * N)
    for dataset in made[N:]:
        dataset.FrameOfReferenceUID = str(Uid.derived("another"))
    series, read = stacks_of(made)
    assert [len(one.instances) for one in series] == [N, N]
    for one, part in zip(series, (made[:N], made[N:]), strict=True):
        volume = assemble(one, read)
        assert volume.source.frame_of_reference_uid == part[0].FrameOfReferenceUID
        assert np.array_equal(volume.array, hu_of(part))


# Frames of one object -------------------------------------------------------------------------------------------------


def test_one_object_with_a_slope_for_each_frame() -> None:
    made = ct_datasets(N)
    for k, dataset in enumerate(made):
        dataset.RescaleSlope = f"{1 + 0.25 * k:g}"
    series, read = stacks_of([enhanced(made)])
    (stack,) = series
    assert stack.frame_sets == ()
    volume = assemble(stack, read)
    assert volume.flags == ("per_slice_rescale",)
    assert np.array_equal(volume.array, hu_of(made).astype(np.float32))


@pytest.mark.parametrize(
    "fact",
    [
        pytest.param(lambda phase: {"index": 1 + phase}, id="temporal position index"),
        pytest.param(lambda phase: {"offset_s": 2.5 * phase}, id="time offset"),
        pytest.param(lambda phase: {"percent": 40.0 + phase}, id="cardiac phase"),
        pytest.param(lambda phase: {"trigger_ms": 30.0 * phase}, id="trigger delay"),
        pytest.param(lambda phase: {"acquisition": 1 + phase}, id="frame acquisition number"),
        pytest.param(lambda phase: {"at": f"202601021011{10 + phase}"}, id="frame acquisition time"),
        pytest.param(lambda phase: {"stack": f"S{phase}"}, id="stack"),
        pytest.param(lambda phase: {"echo_ms": 10.0 * (1 + phase)}, id="echo time"),
        pytest.param(lambda phase: {"b_value": 800.0 * phase}, id="b-value"),
    ],
)
def test_one_object_with_several_phases_or_stacks(fact: Callable[[int], dict[str, object]]) -> None:
    made = phases(3)
    # Frames run place by place, as an acquisition of several echoes writes them.
    order = [(k, phase) for k in range(N) for phase in range(3)]
    whole = enhanced([made[phase][k] for k, phase in order], frames=[fact(phase) for _, phase in order])
    series, read = stacks_of([whole])
    assert [one.frames for one in series] == [N, N, N]
    assert len({one.uid for one in series}) == 1
    volumes = [assemble(one, read) for one in series]
    for volume, stack in zip(volumes, made, strict=True):
        assert np.array_equal(volume.array, hu_of(stack))
    # What was measured tells which frames it used.
    assert len({volume.source.manifest_sha256 for volume in volumes}) == 3


def test_one_object_with_several_phases_that_nothing_tells_apart_is_refused() -> None:
    series, read = stacks_of([enhanced(flat(phases(3)))])
    with pytest.raises(NotAVolume) as caught:
        assemble(series[0], read)
    assert caught.value.reason == "four_d"


def test_one_object_with_stacks_of_two_orientations() -> None:
    axial, sagittal = ct_datasets(N), ct_datasets(N, seed="other")
    for k, dataset in enumerate(sagittal):
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-50.0 + k, -100, 100]
    series, read = stacks_of([enhanced([*axial, *sagittal])])
    assert [one.frames for one in series] == [N, N]
    assert np.array_equal(assemble(series[0], read).array, hu_of(axial))
    assert np.array_equal(assemble(series[1], read).array, hu_of(sagittal[::-1]))


def test_a_localizer_frame_inside_one_object_is_set_apart() -> None:
    made = ct_datasets(N + 1)
    kinds = [["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]] * N + [["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]]
    series, read = stacks_of([enhanced(made, frames=[{"kind": kind} for kind in kinds])])
    assert [one.frames for one in series] == [N, 1]
    assert np.array_equal(assemble(series[0], read).array, hu_of(made[:N]))


def test_pieces_of_one_concatenation_are_one_stack_and_other_objects_are_not() -> None:
    made = ct_datasets(2 * N)
    pieces = [enhanced(made[:N]), enhanced(made[N:])]
    series, _ = stacks_of(pieces)
    assert [one.frames for one in series] == [N, N]
    for piece in pieces:
        piece.ConcatenationUID = str(Uid.derived("concatenation"))
    series, read = stacks_of(pieces[::-1])
    assert [one.frames for one in series] == [2 * N]
    assert np.array_equal(assemble(series[0], read).array, hu_of(made))


def test_enhanced_objects_of_one_frame_each_are_one_stack() -> None:
    made = ct_datasets(N)
    series, read = stacks_of([enhanced([dataset]) for dataset in made])
    assert [one.frames for one in series] == [N]
    assert np.array_equal(assemble(series[0], read).array, hu_of(made))


def test_mr_echoes_and_images_of_another_kind_are_stacks_of_their_own() -> None:
    made = phases(2, by=lambda d, phase: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", ("M", "P")[phase]]))
    for dataset in flat(made):
        dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    series, _ = stacks_of(flat(made))
    assert [len(one.instances) for one in series] == [N, N]
    echoes: list[dict[str, object]] = [{"echo_ms": ms} for ms in [5.0] * N + [9.0] * N]
    whole = enhanced(flat(made), sop_class=EnhancedMRImageStorage, frames=echoes)
    whole.Modality = "MR"
    series, read = stacks_of([whole])
    assert [one.frames for one in series] == [N, N]
    assert np.array_equal(assemble(series[1], read).array, hu_of(made[1]))


def test_pieces_whose_frames_lie_between_each_others_are_read_once_each() -> None:
    made = ct_datasets(2 * N)
    pieces = [enhanced(made[0::2]), enhanced(made[1::2])]
    for piece in pieces:
        piece.ConcatenationUID = str(Uid.derived("concatenation"))
    series, read = stacks_of(pieces)
    asked: list[str] = []

    def counting(locator: str) -> bytes:
        asked.append(locator)
        return read(locator)

    assert np.array_equal(assemble(series[0], counting).array, hu_of(made))
    assert len(asked) == 2
