"""Nuclei in QuPath projects, segmented by PathoSAM and written back as detections."""

from __future__ import annotations

__version__ = "0.1.0"
