"""A project with a run's nuclei on a grid, and a person who edits them at random.

Everything goes through the project's own interface and files, as a run and QuPath do it;
only the network is left out.
"""

from __future__ import annotations

from collections import Counter
from uuid import UUID, uuid4

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from ihc_project import IMAGE, MPP, IhcProject

from pathosam_qupath.qupath.placement import smallest_holding
from pathosam_qupath.qupath.project import HierarchyChange
from pathosam_qupath.run_record import (
    EntryRecord,
    RunManifest,
    create_run,
    file_hash,
    new_run_id,
    utc_now,
)

CLASSES = ("Epithelial", "Inflammatory", "Connective")
SPACING = 9.0


def outlines(centers, radius=3.0):
    """Twelve-sided nuclei around (n, 2) centres, with vertices as QuPath keeps them."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.column_stack([radius * np.cos(angles), radius * np.sin(angles)])
    corners = np.asarray(centers)[:, None, :] + ring[None]
    return shapely.polygons(corners.astype(np.float32).astype(np.float64))


def detections(shapes, classes, *, run=None, **columns):
    """A frame of detections with new ids."""
    count = len(shapes)
    frame = {
        "id": [str(uuid4()) for _ in range(count)],
        "object_type": "detection",
        "classification": classes,
        "probability": 0.9,
        "name": None,
        "color": None,
        "locked": False,
        "parent": None,
        "run": run,
    }
    return gpd.GeoDataFrame({**frame, **columns}, geometry=list(shapes))


def grid(side=54):
    """Centres of side × side nuclei that do not touch."""
    steps = 9 + SPACING * np.arange(side)
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def record_run(
    ihc: IhcProject, centers=None, *, annotations=("whole image",), classes=CLASSES, live=None
):
    """Write nuclei as a run does, with its record; the run's id.

    ``live`` : ids of the annotations that a run into an open QuPath treated; None: no such run.
    """
    centers = grid() if centers is None else np.asarray(centers)
    run = new_run_id(ihc.path)
    options = {"annotations": list(annotations), "whole_image": False, "mpp": MPP}
    with ihc.open() as project:
        entry = project.entries[0]
        shapes = outlines(centers)
        labels = [classes[i % len(classes)] for i in range(len(shapes))]
        frame = detections(shapes, labels, run=run)
        frame["parent"] = smallest_holding(shapes, entry.annotations())
        record = create_run(
            ihc.path,
            RunManifest(
                run,
                utc_now(),
                str(project.path),
                "embedded" if live is None else "live",
                {"name": "grid", "mpp": 0.4, "classes": list(CLASSES)},
                options if live is None else {"mode": "ais", "regions": live},
                {},
                entries=(EntryRecord(entry.id, IMAGE),),
            ),
        )
        record.save_predictions(entry.id, frame)
        before = record.save_before(entry.id, entry.data_path)
        entry.write(HierarchyChange(add=frame))
        after = file_hash(entry.data_path)
        record.update(
            EntryRecord(
                entry.id, IMAGE, "written", len(frame), hash_before=before, hash_after=after
            )
        )
    return run


class Pathologist:
    """Random edits, and what a comparison has to say about each.

    Attributes
    ----------
    expected : (kind, recorded ids, ids now) of every edit.
    remove, add : what the edits amount to.
    """

    def __init__(self, nuclei: gpd.GeoDataFrame, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        centers = nuclei.geometry.centroid
        in_rows = np.lexsort((centers.x.round(), centers.y.round()))
        self.nuclei = nuclei.iloc[in_rows].reset_index(drop=True)
        self.free = [int(i) for i in self.rng.permutation(len(nuclei))]
        self.taken: set[int] = set()
        self.remove: list[str] = []
        self.add: list[gpd.GeoDataFrame] = []
        self.expected: Counter = Counter()
        self.side = int(np.sqrt(len(nuclei)))

    def edit(self, count: int) -> None:
        """Make a number of edits of all kinds."""
        kinds = (
            self.delete,
            self.reshape,
            self.reclassify,
            self.both,
            self.draw_again,
            self.merge,
            self.split,
            self.draw,
            self.touch,
        )
        for number in range(count):
            kinds[number % len(kinds)]()

    def pick(self, neighbours: int = 0) -> list[int]:
        """A nucleus nobody edited, and its free neighbours to the right."""
        while True:
            first = self.free.pop()
            chosen = [first + n for n in range(neighbours + 1)]
            in_row = first % self.side + neighbours < self.side
            if in_row and not self.taken.intersection(chosen):
                self.taken.update(chosen)
                return chosen

    def write(self, row: int, shape=None, label=None, *, name=None) -> str:
        """Replace a nucleus under its id."""
        changed = self.nuclei.iloc[[row]].copy()
        if shape is not None:
            changed = changed.set_geometry([shape])
        if label is not None:
            changed["classification"] = label
        changed["name"] = name
        self.remove.append(changed["id"].iloc[0])
        self.add.append(changed)
        return changed["id"].iloc[0]

    def draw_new(self, shapes, label) -> list[str]:
        """Objects that nobody marked."""
        frame = detections(shapes, [label] * len(shapes))
        self.add.append(frame)
        return list(frame["id"])

    def changed_shape(self, row: int):
        shape = self.nuclei.geometry.iloc[row]
        scale = self.rng.choice([0.7, 0.85, 1.1, 1.2])
        moved = shapely.affinity.translate(shape, *self.rng.uniform(-0.6, 0.6, 2))
        return shapely.affinity.scale(moved, scale, self.rng.uniform(0.8, 1.1))

    def other_class(self, row: int) -> str:
        known = self.nuclei["classification"].iloc[row]
        return str(self.rng.choice([c for c in (*CLASSES, "Mitosis") if c != known]))

    def note(self, kind: str, rows, now) -> None:
        before = frozenset(self.nuclei["id"].iloc[list(rows)])
        for identity in now:
            self.expected[kind, before, identity] += 1

    def delete(self) -> None:
        [row] = self.pick()
        identity = self.nuclei["id"].iloc[row]
        self.remove.append(identity)
        self.note("deleted", [row], [identity])

    def reshape(self) -> None:
        [row] = self.pick()
        self.note("reshaped", [row], [self.write(row, self.changed_shape(row))])

    def reclassify(self) -> None:
        [row] = self.pick()
        self.note("reclassified", [row], [self.write(row, label=self.other_class(row))])

    def both(self) -> None:
        [row] = self.pick()
        now = self.write(row, self.changed_shape(row), self.other_class(row))
        self.note("reshaped and reclassified", [row], [now])

    def draw_again(self) -> None:
        [row] = self.pick()
        label = [None, self.nuclei["classification"].iloc[row], self.other_class(row)][
            int(self.rng.integers(3))
        ]
        same = label in (None, self.nuclei["classification"].iloc[row])
        if self.rng.random() < 0.7:  # else the wrong one is left under the new outline
            self.remove.append(self.nuclei["id"].iloc[row])
        now = self.draw_new([self.changed_shape(row)], label)
        self.note("reshaped" if same else "reshaped and reclassified", [row], now)

    def merge(self) -> None:
        rows = self.pick(int(self.rng.integers(1, 3)))
        self.remove += list(self.nuclei["id"].iloc[rows])
        hull = shapely.convex_hull(shapely.union_all(self.nuclei.geometry.iloc[rows].to_numpy()))
        self.note("merged", rows, self.draw_new([hull], "Epithelial"))

    def split(self) -> None:
        [row] = self.pick()
        shape = self.nuclei.geometry.iloc[row]
        self.remove.append(self.nuclei["id"].iloc[row])
        x, y = shape.centroid.x, shape.centroid.y
        halves = [
            shapely.intersection(shape, shapely.box(x - 9, y - 9, x - 0.1, y + 9)),
            shapely.intersection(shape, shapely.box(x + 0.1, y - 9, x + 9, y + 9)),
        ]
        self.note("split", [row], self.draw_new(halves, None))

    def draw(self) -> None:
        first = self.pick()[0]
        center = self.nuclei.geometry.iloc[first].centroid
        self.taken.add(first)
        shape = outlines([(center.x + SPACING / 2, center.y + SPACING / 2)], radius=1.8)
        self.note("added", [], self.draw_new(shape, None))

    def touch(self) -> None:
        """What is no correction: a name, another tool's detection, a measurement."""
        [row] = self.pick()
        self.write(row, name="looked at")
        center = self.nuclei.geometry.iloc[row].centroid
        foreign = detections(
            outlines([(center.x + SPACING / 2, center.y - SPACING / 2)], radius=1.5),
            ["Tumor"],
            **{"Nucleus: Hematoxylin OD mean": [0.4]},
        )
        self.add.append(foreign)

    def change(self) -> HierarchyChange:
        return HierarchyChange(
            remove=frozenset(UUID(identity) for identity in self.remove),
            add=pd.concat(self.add, ignore_index=True),
        )


def found_edits(nuclei: gpd.GeoDataFrame) -> Counter:
    """What a comparison found, as the pathologist's ``expected`` has it; kept ones left out."""
    return Counter(
        (row.kind, frozenset(row.before), row.id)
        for row in nuclei.itertuples()
        if row.kind != "kept"
    )
