# SPDX-License-Identifier: MIT
"""Datasets: one protocol, and a file for each format."""

from bpfn_cli.data.datasets.opening import (
    SceneDataset,
    data_identity,
    describe,
    open_dataset,
    sample_scene,
    split_identity,
    splits_of,
)

__all__ = [
    "SceneDataset",
    "data_identity",
    "describe",
    "open_dataset",
    "sample_scene",
    "split_identity",
    "splits_of",
]
