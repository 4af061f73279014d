"""While the network works on one study, the next is prepared and the last one restored; the labels stay the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heimdallr_ray.segmentation.totalseg.engine import STUDIES_AT_ONCE, ResidentEngine
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.totalseg.study import Study
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(300)
TASK = "trunk_cavities"
WAIT_S = 30.0
AFFINE = np.diag([-2.4, -2.4, 4.0, 1.0])


def volume(seed: int) -> Volume:
    array = identity_nets.body((40, 36, 30), AFFINE, seed)
    return Volume(array, AFFINE, VolumeSource("CT", manifest_sha256=str(seed), synthetic=True))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), (TASK,))


class SlowNetwork:
    """The real network, which holds each study until the next one is prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, studies: int) -> None:
        self._lock = threading.Lock()
        self.networks = self.in_network = self.most_in_network = 0
        self.open = self.most_open = 0
        self.prepared = [threading.Event() for _ in range(studies)]
        self.next_was_prepared: list[bool] = []
        self._n_prepared = 0
        predict, image, restore = ResidentModel.predict, Study.image, Study.restore

        def slow_predict(model: ResidentModel, *given: Any, **named: Any) -> Any:
            nth = self._entered()
            try:
                self.next_was_prepared.append(nth + 1 == studies or self.prepared[nth + 1].wait(WAIT_S))
                return predict(model, *given, **named)
            finally:
                with self._lock:
                    self.in_network -= 1

        def counted_image(study: Study, *given: Any) -> Any:
            with self._lock:
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            made = image(study, *given)
            with self._lock:
                self.prepared[self._n_prepared].set()
                self._n_prepared += 1
            return made

        def counted_restore(study: Study, *given: Any) -> Any:
            made = restore(study, *given)
            with self._lock:
                self.open -= 1
            return made

        monkeypatch.setattr(ResidentModel, "predict", slow_predict)
        monkeypatch.setattr(Study, "image", counted_image)
        monkeypatch.setattr(Study, "restore", counted_restore)

    def _entered(self) -> int:
        with self._lock:
            nth, self.networks = self.networks, self.networks + 1
            self.in_network += 1
            self.most_in_network = max(self.most_in_network, self.in_network)
            return nth


def test_studies_overlap_outside_the_network_and_nowhere_else(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(weights, threads=1)
    volumes = [volume(seed) for seed in range(4)]
    alone = [engine.segment(one, TASK).label_map.array for one in volumes]
    network = SlowNetwork(monkeypatch, len(volumes))
    with ThreadPoolExecutor(len(volumes)) as pool:
        # As objects of their own: a study that is kept from above would not be prepared again.
        again = [Volume(one.array, one.affine_ras, one.source) for one in volumes]
        together = [made.label_map.array for made in pool.map(lambda one: engine.segment(one, TASK), again)]
    assert network.next_was_prepared == [True] * len(volumes)
    assert network.most_in_network == 1
    assert network.most_open == STUDIES_AT_ONCE
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert any(one.any() for one in alone)


def test_one_volume_asked_for_twice_is_segmented_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, image = ResidentEngine(weights, threads=1), volume(7)
    first = engine.segment(image, TASK)
    network = SlowNetwork(monkeypatch, 1)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: engine.segment(image, TASK), range(2)))
    assert network.networks == 0
    assert both == [first, first]
