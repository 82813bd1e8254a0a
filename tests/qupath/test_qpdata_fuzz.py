"""Damaged ``data.qpdata`` files: a clear error or what is left, never a hang or a crash."""

from __future__ import annotations

from functools import cache

import geopandas as gpd
import numpy as np
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge import judged_entries

from pathosam_qupath.errors import PathosamError
from pathosam_qupath.qupath.java_serialization import read_stream
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.qpdata import QpData

NAMES = ["0.5.1/rois/1", "0.6.0/rois/1", "0.6.0/cells/2", "0.5.1/awkward projekt/1"]
PATHS = {name: path for name, path, _ in judged_entries()}
bounded = settings(
    max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@cache
def sources() -> list[bytes]:
    """Files of QuPath's, and one of ours with many detections."""
    data = QpData.new({}, identifier="x")
    circle = shapely.Point(0, 0).buffer(5, quad_segs=3)
    frame = gpd.GeoDataFrame(
        {"classification": "Tumor", "run": "r", "A": np.arange(30.0)},
        geometry=[shapely.transform(circle, lambda xy, i=i: xy + i) for i in range(30)],
    )
    data.add_detections(frame)
    return [data.to_bytes(), *(PATHS[name].read_bytes() for name in NAMES)]


def use(raw: bytes) -> None:
    """Everything that can be done with a file that can be read."""
    try:
        data = QpData.read(raw)
    except PathosamError as error:
        assert error.cause
        assert error.remedy
        return
    assert data.to_bytes() == raw
    try:
        objects = data.objects()
        assert len(data.detections()) == sum(
            o.object_type in ("detection", "cell", "tile") for o in objects
        )
        facts = data.stains, data.workflow, data.properties, data.server, data.tma_grid
        assert len(facts) == 5
        gone = {o.id for o in objects if o.object_type != "tma_core"}
        assert data.remove(gone) >= len(gone)
        data.to_bytes()
    except PathosamError as error:
        assert error.cause


@bounded
@given(which=st.integers(0, 4), end=st.floats(0, 1, exclude_max=True))
def test_cut_files(which: int, end: float) -> None:
    raw = sources()[which]
    use(raw[: int(end * len(raw))])


changes = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6
)


@bounded
@given(which=st.integers(0, 4), flips=changes)
def test_flipped_bits(which: int, flips: list[tuple[float, int]]) -> None:
    raw = bytearray(sources()[which])
    for at, change in flips:
        raw[int(at * len(raw))] ^= change
    use(bytes(raw))


@bounded
@given(
    which=st.integers(0, 4),
    at=st.floats(0, 1, exclude_max=True),
    count=st.integers(0, 60),
    inserted=st.binary(max_size=60),
)
def test_bytes_lost_and_found(which: int, at: float, count: int, inserted: bytes) -> None:
    raw = sources()[which]
    start = int(at * len(raw))
    use(raw[:start] + inserted + raw[start + count :])


def described(objects: list[PathObject]) -> list[object]:
    return [
        (o.classification, o.name, o.roi, str(o.measurements), o.probability, o.geometry.wkb)
        for o in objects
    ]


@bounded
@given(flips=changes)
def test_bytes_and_nodes_agree_on_damaged_detections(flips: list[tuple[float, int]]) -> None:
    raw = bytearray(sources()[0])
    for at, change in flips:
        raw[int((0.3 + 0.7 * at) * len(raw))] ^= change
    results: list[object] = []
    for read in (QpData.read, lambda damaged: QpData(read_stream(damaged))):
        try:
            results.append(described(read(bytes(raw)).objects()))
        except PathosamError:
            results.append("refused")
    assert results[0] == results[1]
