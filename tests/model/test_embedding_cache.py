"""Embeddings are made once, kept within bounds, and never taken from a wrong or damaged file."""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from golden_pathosam import golden, tiny_model

from pathosam_qupath.errors import ImageError
from pathosam_qupath.model.embedding_cache import (
    ABANDONED,
    EmbeddingCache,
    EmbeddingStore,
    Tile,
    default_folder,
    file_fingerprint,
)
from pathosam_qupath.model.prompts import Prompt

SIDE = 16


@dataclass(frozen=True, eq=False)
class Sums:
    """An embedding of 1024 bytes."""

    values: np.ndarray

    @property
    def original_size(self):
        return (SIDE, SIDE)

    @property
    def nbytes(self):
        return self.values.nbytes

    def to_arrays(self):
        return {"values": self.values}


class Model:
    def __init__(self):
        self.made = 0

    def embed(self, tile):
        self.made += 1
        return Sums(np.full(256, tile.sum(), np.float32))

    def embedding_from_arrays(self, arrays):
        if arrays["values"].shape != (256,):
            raise ValueError("expected 256 values")
        return Sums(arrays["values"])


def tile(i):
    return Tile(64 * i, 0, SIDE, SIDE)


def pixels(i):
    return lambda: np.full((SIDE, SIDE, 3), i, np.uint8)


def opened(folder, *, limit=10**6, scope="weights slide 0.25", memory=10**6):
    model = Model()
    store = EmbeddingStore(scope, limit=limit, folder=folder)
    return model, EmbeddingCache(model, memory=memory, store=store), store


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_memory_keeps_what_was_used_last_within_its_bound():
    model = Model()
    cache = EmbeddingCache(model, memory=3 * 1024)
    made = [cache.get(tile(i), pixels(i)) for i in range(3)]
    assert cache.get(tile(0), pixels(0)) is made[0]
    cache.get(tile(3), pixels(3))
    assert cache.used == 3 * 1024
    assert cache.tiles() == [tile(3), tile(0), tile(2)]
    assert cache.get(tile(0), pixels(0)) is made[0]
    assert model.made == 4
    assert cache.get(tile(1), pixels(1)) is not made[1]


def test_one_embedding_is_held_whatever_the_bound():
    model = Model()
    cache = EmbeddingCache(model, memory=0)
    assert cache.get(tile(0), pixels(0)) is cache.get(tile(0), pixels(0))
    assert model.made == 1


def test_threads_that_ask_for_one_tile_wait_for_one_encoder_pass():
    model = Model()
    cache = EmbeddingCache(model, memory=10**6)
    found = []

    def slow():
        time.sleep(0.05)
        return pixels(1)()

    threads = [
        threading.Thread(target=lambda: found.append(cache.get(tile(1), slow))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.made == 1
    assert len({id(one) for one in found}) == 1


def test_a_failure_is_told_and_not_remembered():
    model = Model()
    cache = EmbeddingCache(model, memory=10**6)

    def unreadable():
        raise ImageError("slide", "a tile is damaged", "Copy it again.")

    with pytest.raises(ImageError):
        cache.get(tile(0), unreadable)
    assert cache.get(tile(0), pixels(0)).values[0] == 0


def test_the_disk_outlives_the_program(tmp_path):
    first, cache, _ = opened(tmp_path)
    made = cache.get(tile(0), pixels(7))
    second, again, store = opened(tmp_path)
    assert again.tiles() == store.tiles() == [tile(0)]
    assert np.array_equal(again.get(tile(0), pixels(7)).values, made.values)
    assert (first.made, second.made) == (1, 0)


@pytest.mark.parametrize(
    "scope", ["other weights slide 0.25", "weights other slide 0.25", "weights slide 0.5"]
)
def test_other_weights_slides_and_resolutions_share_nothing(tmp_path, scope):
    opened(tmp_path)[1].get(tile(0), pixels(7))
    model, cache, _ = opened(tmp_path, scope=scope)
    assert cache.tiles() == []
    cache.get(tile(0), pixels(7))
    assert model.made == 1


def test_other_pixels_at_the_same_place_are_embedded_again(tmp_path):
    opened(tmp_path)[1].get(tile(0), pixels(7))
    model, cache, _ = opened(tmp_path)
    assert cache.get(tile(0), pixels(8)).values[0] == 8 * 3 * SIDE * SIDE
    assert model.made == 1
    assert opened(tmp_path)[1].get(tile(0), pixels(8)).values[0] == 8 * 3 * SIDE * SIDE


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_text("not an embedding")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def renamed(path):
    path.with_name("64_0_16_16.safetensors").replace(path)


def misshapen(path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    save_file({"values": np.zeros(3, np.float32)}, path, metadata=header)


@pytest.mark.parametrize("spoil", [truncated, emptied, foreign, flipped, renamed, misshapen])
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(tmp_path, spoil):
    _, cache, _ = opened(tmp_path)
    cache.get(tile(0), pixels(7))
    cache.get(tile(1), pixels(9))
    path = next(p for p in files(tmp_path) if p.name == "0_0_16_16.safetensors")
    spoil(path)
    model, again, _ = opened(tmp_path)
    assert again.get(tile(0), pixels(7)).values[0] == 7 * 3 * SIDE * SIDE
    assert model.made == 1
    model, again, _ = opened(tmp_path)
    again.get(tile(0), pixels(7))
    assert model.made == 0


def test_an_embedding_that_the_model_refuses_is_made_again(tmp_path):
    store = EmbeddingStore("weights slide 0.25", limit=10**6, folder=tmp_path)
    store.save(tile(0), pixels(7)(), {"values": np.zeros(3, np.float32)})
    model, cache, _ = opened(tmp_path)
    cache.get(tile(0), pixels(7))
    assert model.made == 1
    assert store.load(tile(0), pixels(7)())["values"].shape == (256,)


def test_the_disk_keeps_what_was_used_last_within_its_bound(tmp_path):
    _, cache, _ = opened(tmp_path)
    cache.get(tile(0), pixels(0))
    size = files(tmp_path)[0].stat().st_size
    limit = 3 * size + 200
    for i in range(1, 3):
        opened(tmp_path, limit=limit)[1].get(tile(i), pixels(i))
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (1000 + age, 1000 + age))
    # Used now, so the next oldest goes, whichever slide wants room.
    opened(tmp_path, limit=limit)[1].get(tile(0), pixels(0))
    opened(tmp_path, limit=limit, scope="another slide")[1].get(tile(9), pixels(9))
    left = {path.name.split("_")[0] for path in files(tmp_path)}
    assert len(left) == 3
    assert {"0", "576"} <= left
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    _, cache, store = opened(tmp_path, limit=10, scope="no room")
    cache.get(tile(0), pixels(0))
    assert store.tiles() == []


def test_files_of_others_are_left_alone_and_abandoned_ones_swept(tmp_path):
    _, cache, store = opened(tmp_path)
    cache.get(tile(0), pixels(0))
    mine = tmp_path / "notes.txt"
    mine.write_text("x" * 5000)
    beside = store.folder / "picture.png"
    beside.write_text("x" * 5000)
    abandoned, fresh = store.folder / ".writing-old", store.folder / ".writing-new"
    for path in (abandoned, fresh):
        path.write_text("half")
    os.utime(abandoned, (time.time() - ABANDONED - 10,) * 2)
    opened(tmp_path, limit=3000)[1].get(tile(1), pixels(1))
    assert mine.exists()
    assert beside.exists()
    assert fresh.exists()
    assert not abandoned.exists()


def test_a_disk_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    _, cache, _ = opened(blocked)
    assert cache.get(tile(0), pixels(7)).values[0] == 7 * 3 * SIDE * SIDE
    assert "cannot be kept" in caplog.text


def work(folder, first, count):
    _, cache, _ = opened(folder, limit=9000)
    for i in range(count):
        number = (first + i) % 12
        found = cache.get(tile(number), pixels(number)).values[0]
        assert found == number * 3 * SIDE * SIDE
        cache = EmbeddingCache(
            Model(), memory=0, store=EmbeddingStore("weights slide 0.25", limit=9000, folder=folder)
        )


def test_two_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=work, args=(tmp_path, first, 60)) for first in (0, 5)]
    for other in others:
        other.start()
    work(tmp_path, 3, 60)
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert not [path for path in files(tmp_path) if path.suffix != ".safetensors"]


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(bytes(300_000))
    first = file_fingerprint(path)
    assert file_fingerprint(path) == first
    times = path.stat().st_mtime_ns
    path.write_bytes(bytes(299_999) + b"x")
    os.utime(path, ns=(times, times))
    assert file_fingerprint(path) != first
    with pytest.raises(ImageError, match=r"none\.svs: cannot be read"):
        file_fingerprint(tmp_path / "none.svs")


def test_the_usual_folder_is_the_users():
    assert default_folder().parts[-2:] == ("pathosam-qupath", "embeddings")


def test_pathosams_embeddings_come_back_from_disk_with_the_same_answers(tmp_path):
    model = tiny_model(semantic=True)
    image = golden("ais")["image_u8"][:128, :128]
    place = Tile(0, 0, 128, 128)

    def cache():
        store = EmbeddingStore("tiny", limit=10**7, folder=tmp_path)
        return EmbeddingCache(model, memory=10**7, store=store)

    made = cache().get(place, lambda: image)
    prompts = [Prompt(points=((60, 50),)), Prompt(box=(20, 30, 60, 70))]
    kept = cache().get(place, lambda: image)
    assert kept is not made
    for one, other in zip(model.prompt(made, prompts), model.prompt(kept, prompts), strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert (one.score, one.stability) == (other.score, other.stability)
    assert np.array_equal(model.embedded_classes(made), model.embedded_classes(kept))
    for wrong in ({"features": np.zeros((1, 2, 3, 4), np.float32), "sizes": np.zeros((2, 2))}, {}):
        with pytest.raises((ValueError, KeyError)):
            model.embedding_from_arrays(wrong)
