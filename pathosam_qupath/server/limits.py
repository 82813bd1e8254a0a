"""How much a client may ask for at a time; the server's memory and disk depend on these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes
    ----------
    json_bytes, pixel_bytes : of a request's body: JSON, and an image.
    pixels : of an image that a client sends, once decoded.
    vertices : of all geometries of a request.
    prompts : of a request.
    objects : compared in one request.
    queued_jobs : that wait; further ones are refused until one has begun.
    images : kept open; the longest unused is closed.
    image_bytes : of all pixels that clients sent, decoded; likewise.
    results, result_bytes : kept on disk; the oldest are deleted.
    ended_jobs : remembered.
    wait_seconds : that a request may wait for a change.
    body_seconds : that a body may take to arrive.
    sessions, embedding_bytes : of prompts: images with a session, and bytes each holds.
    """

    json_bytes: int = 32 << 20
    pixel_bytes: int = 256 << 20
    pixels: int = 100_000_000
    vertices: int = 100_000
    prompts: int = 1_000
    objects: int = 100_000
    queued_jobs: int = 64
    images: int = 32
    image_bytes: int = 1 << 30
    results: int = 20
    result_bytes: int = 4 << 30
    ended_jobs: int = 200
    wait_seconds: float = 30.0
    body_seconds: float = 120.0
    sessions: int = 4
    embedding_bytes: int = 128 << 20
