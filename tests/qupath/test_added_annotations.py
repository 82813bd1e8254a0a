"""Either backend adds annotations, and leaves everything else as it was."""

from uuid import uuid4

import pytest
import shapely

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.qupath.project import HierarchyChange, open_project


def described(item):
    return (
        item.id,
        item.object_type,
        item.roi,
        item.classification,
        item.name,
        item.color,
        item.locked,
        dict(item.metadata),
        item.parent,
    )


@pytest.mark.parametrize("name", ["0.5.1/rois", "0.6.0/rois"])
def test_annotations_are_added_and_the_rest_stays(backend, copied, name):
    folder = copied(name)
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        before = entry.objects()
        parent = next(o for o in before if o.name == "whole image")
        new = (
            PathObject(
                uuid4(),
                "annotation",
                shapely.box(10, 20, 60, 80),
                "Rectangle",
                classification="PathoSAM: review",
                name="review 1",
                metadata={"PathoSAM suggestion": "1"},
            ),
            PathObject(
                uuid4(),
                "annotation",
                shapely.Polygon([(100, 100), (140, 104), (120, 150)]),
                "Polygon",
                color=(1, 2, 255),
                locked=True,
                parent=parent.id,
            ),
        )
        entry.write(HierarchyChange(annotations=new))
    for reader in {"embedded", backend}:
        with open_project(folder, reader) as project:
            after = {o.id: o for o in project.entries[0].objects()}
        assert set(after) == {o.id for o in (*before, *new)}
        for item in (*before, *new):
            assert described(after[item.id]) == described(item)
            assert shapely.hausdorff_distance(after[item.id].geometry, item.geometry) < 0.011


def test_an_unknown_parent_changes_nothing(backend, copied):
    folder = copied("0.6.0/rois")
    with open_project(folder, backend) as project:
        entry = project.entries[0]
        content = entry.data_path.read_bytes()
        lost = PathObject(
            uuid4(), "annotation", shapely.box(1, 1, 9, 9), "Rectangle", parent=uuid4()
        )
        with pytest.raises(ProjectError, match="no object"):
            entry.write(HierarchyChange(annotations=(lost,)))
        assert entry.data_path.read_bytes() == content
