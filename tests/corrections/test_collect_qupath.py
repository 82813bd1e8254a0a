"""Corrections made with QuPath's own classes are found; ids survive QuPath."""

from collections import Counter

import numpy as np
import pytest
import shapely
from recorded_project import Pathologist, found_edits, record_run

from pathosam_qupath.corrections.collect import CollectOptions, collect
from pathosam_qupath.corrections.differences import write_differences
from pathosam_qupath.qupath import jvm

pytestmark = pytest.mark.qupath


@pytest.fixture(autouse=True)
def _needs_qupath():
    if jvm.find_installation() is None:
        pytest.skip("no QuPath found; install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR")


class QuPathEditor:
    """An image's data file in QuPath's own hands."""

    def __init__(self, path):
        jvm.start_qupath()
        from jpype import JClass

        from pathosam_qupath.qupath.paquo_data import PaquoData

        self.path, self.data = path, PaquoData.read(path)
        self.objects = JClass("qupath.lib.objects.PathObjects")
        self.rois = JClass("qupath.lib.roi.ROIs")
        self.plane = JClass("qupath.lib.regions.ImagePlane").getDefaultPlane()
        self.classes = JClass("qupath.lib.objects.classes.PathClass")
        hierarchy = JClass("qupath.lib.objects.hierarchy.PathObjectHierarchy")
        # One that was read cannot be edited; QuPath too moves its objects into a fresh one.
        self.hierarchy = hierarchy()
        for number, part in enumerate(self.data._parts):
            if isinstance(part, hierarchy):
                self.hierarchy.setHierarchy(part)
                self.data._parts[number] = self.hierarchy
        self.by_id = {str(o.getID()): o for o in self.hierarchy.getFlattenedObjectList(None)}

    def roi(self, shape):
        from jpype import JArray, JDouble

        x, y = (JArray(JDouble)(axis) for axis in np.array(shape.exterior.coords)[:-1].T)
        return self.rois.createPolygonROI(x, y, self.plane)

    def path_class(self, name):
        return self.classes.fromString(name) if isinstance(name, str) else None

    def apply(self, person: Pathologist):
        """What the person did: nuclei under their ids in place, all else drawn as annotations."""
        kept = set()
        for frame in person.add:
            for row in frame.itertuples(index=False):
                known = self.by_id.get(row.id)
                if known is not None:
                    kept.add(row.id)
                    if not shapely.equals_exact(row.geometry, self.shape_of(person, row.id)):
                        known.setROI(self.roi(row.geometry))
                    known.setPathClass(self.path_class(row.classification))
                    known.setName(row.name if isinstance(row.name, str) else None)
                elif len(frame.columns) > 10:  # another tool's, with a measurement of its own
                    new = self.objects.createDetectionObject(self.roi(row.geometry))
                    new.getMeasurementList().put("Nucleus: Hematoxylin OD mean", 0.4)
                    self.hierarchy.addObject(new)
                else:
                    label = self.path_class(row.classification)
                    new = self.objects.createAnnotationObject(self.roi(row.geometry), label)
                    self.rename(person, row.id, str(new.getID()))
                    self.hierarchy.addObject(new)
        from jpype import JClass

        gone = JClass("java.util.ArrayList")()
        for identity in set(person.remove) - kept:
            gone.add(self.by_id[identity])
        self.hierarchy.removeObjects(gone, True)

    def shape_of(self, person, identity):
        return person.nuclei.set_index("id").geometry[identity]

    def rename(self, person, old, new):
        """QuPath gives ids of its own."""
        for kind, before, identity in list(person.expected):
            if identity == old:
                person.expected[kind, before, new] += person.expected.pop((kind, before, identity))

    def save(self):
        with self.path.open("wb") as file:
            self.data.write(file)


def read_by_qupath(path):
    """(class, id, kind) of the objects that QuPath reads from a GeoJSON file."""
    from jpype import JClass

    found = JClass("qupath.lib.io.PathIO").readObjects(JClass("java.nio.file.Paths").get(str(path)))
    return [
        (str(o.getPathClass()), str(o.getID()), "annotation" if o.isAnnotation() else "other")
        for o in found
    ]


def test_of_a_thousand_edits_with_qupaths_classes_all_are_found_and_none_invented(ihc, tmp_path):
    record_run(ihc)
    person = Pathologist(ihc.detections(), seed=11)
    person.edit(1008)
    editor = QuPathEditor(ihc.data)
    editor.apply(person)
    editor.save()
    for backend in ("embedded", "paquo"):
        with ihc.open(backend) as project:
            [image] = collect(project, CollectOptions())
            [file] = write_differences(project, [image], tmp_path / backend)
        found = found_edits(image.nuclei)
        assert found - person.expected == Counter()
        assert person.expected - found == Counter()
        shown = read_by_qupath(file)
        assert {kind for *_, kind in shown} == {"annotation"}
        kinds = Counter(name for name, *_ in shown if name != "PathoSAM: before")
        expected: Counter = Counter()
        for (kind, *_), count in person.expected.items():
            expected[f"PathoSAM: {kind}"] += count
        assert kinds == expected


def test_marks_of_review_that_qupath_saves_are_seen(ihc):
    record_run(ihc)
    editor = QuPathEditor(ihc.data)
    marked = {}
    for item in list(editor.by_id.values()):
        if str(item.getName()) == "ellipse":
            item.setPathClass(editor.path_class("PathoSAM: reviewed"))
            marked[str(item.getID())] = "class"
        elif str(item.getName()) == "poly":
            item.setLocked(True)
            marked[str(item.getID())] = "lock"
        elif str(item.getName()) == "with hole":
            item.setName("Reviewed")
            marked[str(item.getID())] = "name"
        elif str(item.getName()) == "multi":
            item.getMetadata().put("PathoSAM reviewed", "2026-01-01")
            marked[str(item.getID())] = "mark"
    editor.save()
    for backend in ("embedded", "paquo"):
        with ihc.open(backend) as project:
            [image] = collect(project, CollectOptions())
        found = {a.id: a.reviewed for a in image.annotations if a.reviewed is not None}
        assert found == marked
        assert 0 < image.nuclei["reviewed"].sum() < len(image.nuclei)
