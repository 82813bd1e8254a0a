import io
import struct
import sys
import zlib

import numpy as np
import pytest
import shapely
from live_server import IHC, IMAGES, MPP, rectangle, regions
from PIL import Image
from shapely.geometry import shape


def png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def send(live, content, kind="image/png", **parameters):
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return live.ask(
        "POST", f"/v1/images/pixels?{query}", raw=content, headers={"Content-Type": kind}
    )


def test_the_same_request_opens_the_same_image(live):
    first = live.post("/v1/images", {"path": str(IHC), "mpp": MPP})
    assert first.status == 201
    assert first.json["source"] == "file"
    assert (first.json["width"], first.json["height"], first.json["mpp"]) == (512, 512, [MPP, MPP])
    assert live.open() == first.json["image"]
    assert live.post("/v1/images", {"uri": IHC.as_uri(), "mpp": MPP}).json == first.json
    assert live.open(mpp=0.5) != first.json["image"]
    turned = live.post(
        "/v1/images", {"path": str(IHC), "mpp": MPP, "crop": [0, 0, 100, 50], "rotation": 90}
    ).json
    assert (turned["width"], turned["height"]) == (50, 100)


def test_a_closed_image_is_not_found(live):
    image = live.open(mpp=0.7)
    assert live.get(f"/v1/images/{image}").status == 200
    assert live.ask("DELETE", f"/v1/images/{image}").status == 204
    assert live.get(f"/v1/images/{image}").code == "not_found"
    assert live.ask("DELETE", f"/v1/images/{image}").status == 404


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/nothing", "/", str(IMAGES / ".." / ".." / "rois.judge.json")]
)
def test_files_outside_the_roots_are_refused_whether_they_exist_or_not(live, path):
    answer = live.post("/v1/images", {"path": path})
    assert answer.status == 403
    assert answer.code == "outside_roots"
    assert "--root" in answer.json["error"]["remedy"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_out_of_the_roots_are_not_followed(live, slides):
    outside = slides.parent / "forbidden" / "secret.png"
    outside.write_bytes(IHC.read_bytes())
    (slides / "link.png").symlink_to(outside)
    (slides / "folder").symlink_to(outside.parent)
    (slides / "loop").symlink_to(slides / "loop")
    for path in (slides / "link.png", slides / "folder" / "secret.png"):
        assert live.post("/v1/images", {"path": str(path), "mpp": MPP}).code == "outside_roots"
    assert live.post("/v1/images", {"path": str(slides / "loop")}).status in (403, 422)
    (slides / "inside.png").write_bytes(IHC.read_bytes())
    (slides / "good.png").symlink_to(slides / "inside.png")
    assert live.post("/v1/images", {"path": str(slides / "good.png"), "mpp": MPP}).status == 201


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_steps_upwards_are_taken_after_links_are_followed(live, slides):
    """``link/..`` is the folder above what the link names, not above the link."""
    inside, outside = slides / "deep" / "deeper", slides.parent / "forbidden" / "deep"
    inside.mkdir(parents=True)
    outside.mkdir()
    (slides / "deep" / "a.png").write_bytes(IHC.read_bytes())
    (outside.parent / "a.png").write_bytes(IHC.read_bytes())
    (slides / "out").symlink_to(outside)
    (slides / "within").symlink_to(inside)

    def code(path):
        answer = live.post("/v1/images", {"path": str(path), "mpp": MPP})
        return answer.status if answer.status == 201 else answer.code

    assert code(f"{inside}/../a.png") == 201
    assert code(f"{slides}/within/../a.png") == 201
    assert code(f"{slides}/out/../a.png") == "outside_roots"
    assert code(f"{slides}/../forbidden/a.png") == "outside_roots"
    assert code(f"{slides}{slides.parent}/forbidden/a.png") == "image"
    assert code(f"{slides}-more/a.png") == "outside_roots"
    for uri in (f"file://{slides}/out/../a.png", f"file:{slides}/%2e%2e/forbidden/a.png"):
        assert live.post("/v1/images", {"uri": uri, "mpp": MPP}).code == "outside_roots"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"path": "ihc.png"}, 422),
        ({"path": "\0"}, 422),
        ({"uri": "https://evil.example/slide.svs"}, 422),
        ({"uri": "file://evil.example/slide.svs"}, 422),
        ({"uri": "file:///%2e%2e/%2e%2e/etc/passwd"}, 403),
        ({}, 422),
        ({"path": str(IHC), "uri": IHC.as_uri()}, 422),
        ({"path": str(IHC), "mpp": -1}, 422),
        ({"path": str(IHC), "mpp": "0.5"}, 422),
        ({"path": str(IHC), "weights": "/tmp/x.pt"}, 422),
        ({"path": str(IHC), "mpp": 0.5, "crop": [0, 0, 10_000, 10]}, 422),
    ],
)
def test_requests_that_cannot_be_met_say_why(live, request_, status):
    answer = live.post("/v1/images", request_)
    assert answer.status == status
    assert all(answer.json["error"].values())


def test_what_is_no_slide_is_told_from_one_without_a_pixel_size(live, slides):
    (slides / "text.svs").write_text("no slide")
    assert live.post("/v1/images", {"path": str(slides / "text.svs")}).code == "image"
    assert live.post("/v1/images", {"path": str(slides / "missing.svs")}).code == "image"
    assert live.post("/v1/images", {"path": str(IHC)}).code == "pixel_size"


def test_pixels_are_a_part_of_the_slide(live):
    """The same tissue, once read by the server and once sent, gives the same nuclei."""
    tissue = Image.open(IHC).convert("RGB")
    sent = send(
        live,
        png(tissue),
        x=1000,
        y=2000,
        width=1024,
        height=1024,
        mpp=MPP / 2,
        slide_width=50_000,
        slide_height=40_000,
    )
    assert sent.status == 201
    assert sent.json["source"] == "pixels"
    assert (sent.json["width"], sent.json["height"]) == (50_000, 40_000)
    assert sent.json["mpp"] == [MPP / 2, MPP / 2]

    def nuclei(image, region):
        job = live.segment(image, regions(region))
        assert live.wait(job)["state"] == "done"
        return live.features(job)

    read = nuclei(live.open(), rectangle(100, 100, 200, 200))
    shown = nuclei(sent.json["image"], rectangle(1200, 2200, 400, 400))
    assert len(shown) == len(read) > 5
    for one, other in zip(read, shown, strict=True):
        moved = shapely.transform(shape(one["geometry"]), lambda xy: xy * 2 + (1000, 2000))
        assert shape(other["geometry"]).symmetric_difference(moved).area < 0.02 * moved.area
        area = one["properties"]["measurements"]["Area µm^2"]
        assert other["properties"]["measurements"]["Area µm^2"] == pytest.approx(area, rel=1e-6)


def bomb(width, height):
    """A PNG that is small as a file and large once decoded."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (bomb(60_000, 60_000), "image/png", 413),
        (bomb(12_000, 12_000), "image/png", 413),
        (bomb(9_000, 9_000), "image/png", 422),
        (b"\x89PNG\r\n\x1a\n", "image/png", 422),
        (b"GIF89a", "image/png", 422),
        (b"", "image/jpeg", 422),
        (b"II*\0" + b"\0" * 100, "image/png", 422),
        (png(Image.new("L", (64, 64), 128)), "image/png", 422),
        (png(Image.new("RGB", (64, 64), "white")), "application/octet-stream", 415),
        (png(Image.new("RGB", (64, 32), "white")), "image/png", 422),
    ],
)
def test_pixels_that_are_no_picture_of_the_rectangle_are_refused(live, content, kind, status):
    answer = send(live, content, kind, x=0, y=0, width=640, height=640, mpp=0.25)
    assert answer.status == status
    assert answer.json["error"]["remedy"]


def test_fluorescence_is_refused(live):
    dark = np.zeros((256, 256, 3), np.uint8)
    dark[100:120, 100:120, 2] = 200
    answer = send(live, png(Image.fromarray(dark)), x=0, y=0, width=256, height=256, mpp=0.25)
    assert answer.code == "image"
    assert "fluorescence" in answer.json["error"]["cause"]


@pytest.mark.parametrize(
    "wrong", [{"mpp": 0}, {"mpp": "nan"}, {"width": "inf"}, {"x": -1}, {"height": ""}]
)
def test_a_rectangle_must_be_one(live, wrong):
    given = {"x": 0, "y": 0, "width": 64, "height": 64, "mpp": 0.25, **wrong}
    assert send(live, png(Image.new("RGB", (64, 64), "white")), **given).status == 422
