# SPDX-License-Identifier: MIT
"""Datasets: one interface, and one file per format."""

from bpfn_cli.data.datasets.base import DataIdentity, Dataset, Format, SceneDataset
from bpfn_cli.data.datasets.registry import (
    FORMATS,
    data_identity,
    describe,
    find_dataset,
    is_synthetic_kind,
    open_dataset,
    sample_scene,
    sequence_of,
    split_identity,
    title_of,
)

__all__ = [
    "FORMATS",
    "DataIdentity",
    "Dataset",
    "Format",
    "SceneDataset",
    "data_identity",
    "describe",
    "find_dataset",
    "is_synthetic_kind",
    "open_dataset",
    "sample_scene",
    "sequence_of",
    "split_identity",
    "title_of",
]
