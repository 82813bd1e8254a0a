"""OpenCV beside threads of our own."""

import cv2


def without_own_threads() -> None:
    """Let OpenCV work in the thread that calls it, here and in the rest of the process.

    Tiles, blocks and images are spread over threads already, so its own gain nothing; it hung
    when several of ours called it (seen with OpenCV 5.0).
    """
    cv2.setNumThreads(1)
