"""Corrections become training data: every reviewed nucleus once, and nothing that nobody saw."""

import json
import os
import shutil
from uuid import UUID

import geopandas as gpd
import numpy as np
import pytest
from ihc_project import IhcProject
from PIL import Image
from recorded_project import detections, grid, outlines, record_run

from pathosam_qupath.corrections.samples import read_samples
from pathosam_qupath.corrections.training_set_files import verify_training_set
from pathosam_qupath.errors import ImageError, UsageError
from pathosam_qupath.qupath.project import HierarchyChange


@pytest.fixture
def exported(command, tmp_path):
    """Export projects: (exit code, report as JSON, folder)."""
    folder = tmp_path / "data"

    def run(*projects, words=("--reviewed", "Necrosis")):
        paths = [word for p in projects for word in p.words[:1]]
        code, out, _ = command(
            *["corrections", "export", *paths, *projects[0].words[1:]],
            *["--images", "ihc.png", "--out", folder, *words, "--json"],
        )
        return code, json.loads(out), folder

    return run


def nuclei_of(folder):
    [path] = folder.glob("nuclei-*.parquet")
    frame = gpd.read_parquet(path)
    return frame[frame["kind"] != "ignored"]


def another_slide(ihc, folder):
    """A copy of the project whose image is another one."""
    folder.mkdir()
    other = IhcProject(folder)
    image = folder / "images" / "ihc.png"
    pixels = np.array(Image.open(image))
    Image.fromarray(pixels[::-1].copy()).save(image)
    return other


def reclassify(ihc, count, name):
    """Give nuclei in the reviewed region another class; their ids."""
    area = next(o for o in ihc.objects() if o.name == "with hole").geometry
    nuclei = ihc.detections()
    inside = nuclei[nuclei.geometry.centroid.within(area)].iloc[:count]
    changed = inside.assign(classification=name)
    ihc.change(HierarchyChange(remove=frozenset(map(UUID, changed["id"])), add=changed))
    return list(changed["id"])


def test_reviewed_nuclei_are_in_the_masks_and_the_rest_is_ignored(ihc, exported):
    record_run(ihc)
    mitoses = reclassify(ihc, 3, "Mitosis")
    code, report, folder = exported(ihc)
    assert code == 0
    area = next(o for o in ihc.objects() if o.name == "with hole").geometry
    nuclei = ihc.detections()
    expected = set(nuclei["id"][nuclei.geometry.centroid.within(area)])
    provenance = nuclei_of(folder)
    assert set(provenance["object"]) == expected
    assert report["nuclei"] == {"kept": len(expected) - 3, "reclassified": 3}
    assert set(provenance["object"][provenance["class"] == "Mitosis"]) == set(mitoses)
    [sample] = read_samples(folder / "train")
    assert sample.mpp == report["mpp"]
    assert sample.labels.max() == len(expected)
    ignore = np.array(Image.open(next((folder / "train" / "ignore").iterdir())))
    pixel = (report["mpp"] / 0.6) ** 2
    reviewed = (ignore == 0).sum() * pixel
    assert reviewed == pytest.approx(area.area, rel=0.05)
    assert not (sample.labels[ignore > 0]).any()
    types = {int(t) for t in np.unique(sample.types[sample.labels > 0])}
    assert types == {6, 2, 3, report["own_classes"]["Mitosis"]}
    for row in provenance.itertuples():
        label = sample.labels == row.label
        assert label.sum() * pixel == pytest.approx(row.geometry.area, rel=0.25)
        assert (sample.types[label] == row.type).all()


def test_crops_show_the_slide_at_the_models_resolution(ihc, exported):
    record_run(ihc)
    _, report, folder = exported(ihc)
    [sample] = read_samples(folder / "train")
    area = next(o for o in ihc.objects() if o.name == "with hole").geometry
    scale = report["mpp"] / 0.6
    left, top, right, bottom = area.bounds
    width = min(right / scale + 32, 512 / scale) - max(0, left / scale - 32)
    height = min(bottom / scale + 32, 512 / scale) - max(0, top / scale - 32)
    assert sample.image.shape[:2] == pytest.approx((height, width), abs=2)
    whole = np.array(Image.open(ihc.path.parent / "images" / "ihc.png").convert("RGB"))
    x0, y0 = max(0, left - 32 * scale), max(0, top - 32 * scale)
    shown = whole[int(y0) : int(bottom + 32 * scale), int(x0) : int(right + 32 * scale)]
    assert sample.image.mean((0, 1)) == pytest.approx(shown.mean((0, 1)), abs=2)


def test_exporting_again_replaces_the_region(ihc, exported):
    record_run(ihc)
    _, first, folder = exported(ihc)
    reclassify(ihc, 2, "Connective")
    _, second, _ = exported(ihc)
    assert (second["regions"], second["crops"]) == (first["regions"], first["crops"])
    assert sum(second["nuclei"].values()) == sum(first["nuclei"].values())
    provenance = nuclei_of(folder)
    assert not provenance["object"].duplicated().any()
    assert (provenance["kind"] == "reclassified").sum() >= 1
    assert verify_training_set(folder) is not None


def test_projects_accumulate_and_a_slide_stays_in_its_split(ihc, exported, tmp_path):
    other = another_slide(ihc, tmp_path / "other")
    for one in (ihc, other):
        record_run(one)
    _, first, folder = exported(ihc)
    assert first["crops"] == {"train": 1}
    assert "nothing is held out" in " ".join(first["notes"])
    _, second, _ = exported(other, words=("--reviewed", "Necrosis"))
    assert second["crops"] == {"train": 1, "val": 1}
    assert second["regions"] == 2
    _, third, _ = exported(ihc, other)
    assert (third["crops"], third["regions"]) == (second["crops"], 2)
    assert len(list(read_samples(folder / "val"))) == 1
    slides = [s.region.slide for s in verify_training_set(folder).regions]
    assert len(set(slides)) == 2


@pytest.mark.parametrize(("policy", "own"), [("newest", True), ("keep", False)])
def test_of_two_projects_that_disagree_one_counts(ihc, exported, tmp_path, policy, own):
    record_run(ihc)
    exported(ihc)
    (tmp_path / "copy").mkdir()
    copy = IhcProject(tmp_path / "copy")
    shutil.rmtree(copy.path)
    shutil.copytree(ihc.path, copy.path)
    changed = reclassify(copy, 4, "Mitosis")
    later = ihc.data.stat().st_mtime + 60
    os.utime(copy.data, (later, later))
    code, report, folder = exported(copy, words=("--reviewed", "Necrosis", "--on-conflict", policy))
    assert code == 0
    [conflict] = report["conflicts"]
    assert conflict["nuclei"] == 4
    assert "disagree about 4 nuclei" in " ".join(report["notes"])
    provenance = nuclei_of(folder)
    assert not provenance["object"].duplicated().any()
    assert set(provenance["object"][provenance["class"] == "Mitosis"]) == (
        set(changed) if own else set()
    )
    assert verify_training_set(folder) is not None


def test_disagreement_can_be_an_error_that_changes_nothing(ihc, exported, tmp_path):
    record_run(ihc)
    _, _, folder = exported(ihc)
    before = (folder / "regions.json").read_bytes()
    (tmp_path / "copy").mkdir()
    copy = IhcProject(tmp_path / "copy")
    shutil.rmtree(copy.path)
    shutil.copytree(ihc.path, copy.path)
    reclassify(copy, 1, "Mitosis")
    code, said, _ = exported(copy, words=("--reviewed", "Necrosis", "--on-conflict", "error"))
    assert code == 2
    assert "disagree about 1 nuclei" in said["error"]["cause"]
    assert (folder / "regions.json").read_bytes() == before


def test_other_tools_detections_are_neither_nuclei_nor_background(ihc, exported):
    area = next(o for o in ihc.objects() if o.name == "with hole").geometry
    left, top, _, _ = area.bounds
    center = (left + 14, top + 14)
    foreign = detections(outlines([center], radius=5), ["Tumor"])
    ihc.change(HierarchyChange(add=foreign))
    free = [c for c in grid() if np.hypot(*(c - center)) > 12]
    record_run(ihc, free)
    _, report, folder = exported(ihc)
    [sample] = read_samples(folder / "train")
    ignore = np.array(Image.open(next((folder / "train" / "ignore").iterdir())))
    scale = report["mpp"] / 0.6
    x0 = max(0, int(left / scale) - 32)
    y0 = max(0, int(top / scale) - 32)
    row, column = int(center[1] / scale) - y0, int(center[0] / scale) - x0
    assert ignore[row, column] == 255
    assert sample.labels[row, column] == 0


def test_coco_and_pathosam_layouts_hold_the_same_nuclei(ihc, exported):
    record_run(ihc)
    _, _, folder = exported(ihc)
    [sample] = read_samples(folder / "train")
    coco = json.loads((folder / "train" / "coco.json").read_text())
    nuclei = [a for a in coco["annotations"] if not a["iscrowd"]]
    assert len(nuclei) == sample.labels.max()
    assert sum(a["area"] for a in nuclei) == (sample.labels > 0).sum()
    for annotation in coco["annotations"][:3]:
        mask = np.zeros(sample.labels.size, bool)
        position, value = 0, False
        for count in annotation["segmentation"]["counts"]:
            mask[position : position + count] = value
            position, value = position + count, not value
        mask = mask.reshape(sample.labels.shape[::-1]).T
        assert position == sample.labels.size
        assert mask.sum() == annotation["area"]
        assert len(np.unique(sample.labels[mask])) == 1
    import tifffile

    [image] = (folder / "train" / "pathosam" / "images").iterdir()
    labels = tifffile.imread(folder / "train" / "pathosam" / "labels" / image.name)
    assert (labels == sample.labels).all()
    assert tifffile.imread(image).shape == sample.image.shape


def test_nothing_reviewed_says_how_to_mark_it(ihc, exported):
    record_run(ihc)
    code, said, folder = exported(ihc, words=())
    assert code == 2
    assert "reviewed" in said["error"]["remedy"]
    assert not folder.exists()


def test_another_resolution_or_a_foreign_folder_is_refused(ihc, exported):
    record_run(ihc)
    _, report, folder = exported(ihc)
    state = folder / "regions.json"
    state.write_text(state.read_text().replace(f'"mpp": {report["mpp"]}', '"mpp": 0.77', 1))
    code, said, _ = exported(ihc)
    assert code == 2
    assert "0.77 µm/px" in said["error"]["cause"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.docx").write_text("…")
    code, said, _ = exported(ihc)
    assert code == 2
    assert "other things" in said["error"]["cause"]


@pytest.mark.parametrize("kind", ["images", "labels", "ignore"])
def test_a_damaged_export_is_found(ihc, exported, kind):
    record_run(ihc)
    _, _, folder = exported(ihc)
    [file] = (folder / "train" / kind).iterdir()
    pixels = np.array(Image.open(file))
    pixels[10:20, 10:20] = 1
    Image.fromarray(pixels).save(file)
    with pytest.raises(ImageError, match="not what the export wrote"):
        verify_training_set(folder)
    file.unlink()
    with pytest.raises(ImageError, match="missing"):
        verify_training_set(folder)


def test_nothing_is_learnt_from_a_damaged_export(ihc, exported, command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOSAM_HOME", str(tmp_path / "home"))
    record_run(ihc)
    _, _, folder = exported(ihc)
    [file] = (folder / "train" / "images").iterdir()
    file.write_bytes(file.read_bytes()[:-500])
    code, out, _ = command("finetune", "--data", folder, "--name", "mine", "--json")
    error = json.loads(out)["error"]
    assert code == 4
    assert file.name in error["subject"]
    assert "not what the export wrote" in error["cause"]
    assert "export" in error["remedy"].lower()
    assert not (tmp_path / "home").exists()


def test_a_cut_off_export_is_mended_by_the_next(ihc, exported):
    record_run(ihc)
    _, _, folder = exported(ihc)
    (folder / "train" / "manifest.csv").write_text("file,label\n")
    with pytest.raises(UsageError, match="Run the same export again"):
        verify_training_set(folder)
    exported(ihc)
    assert verify_training_set(folder) is not None
    [nuclei] = folder.glob("nuclei-*.parquet")
    nuclei.write_bytes(nuclei.read_bytes()[:100])
    code, said, _ = exported(ihc)
    assert code == 2
    assert "damaged" in said["error"]["cause"]
