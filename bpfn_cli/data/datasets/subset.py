# SPDX-License-Identifier: MIT
"""Subsets made by `bpfn subset`: the scenes named in `subset.json`, in folders or packed."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from bpfn_cli.data.datasets.base import DataIdentity, Dataset, SceneDataset, SceneNames, in_one_line, stored_split
from bpfn_cli.data.datasets.folders import list_scenes
from bpfn_cli.data.datasets.packed import MAX_PACKED_BYTES, open_packed
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.subset.manifest import MANIFEST, SubsetManifest, packed_name
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors, open_regular, sha256_of


@dataclass(frozen=True)
class Subset(Dataset):
    """A finished subset; `format` is that of its source."""

    manifest: SubsetManifest

    def _list_scenes(self) -> SceneNames:
        expected = self.manifest.names()
        if self.manifest.packed:
            return expected
        scenes = {}
        for split in SPLITS:
            if expected.get(split) or (self.root / split).is_dir():
                scenes[split] = list_scenes(self.root / split)[0]
                self._check_scenes(split, scenes[split], expected[split])
        return scenes

    def _check_scenes(self, split: str, names: tuple[str, ...], expected: tuple[str, ...]) -> None:
        _refuse_escape(self.root, self.root / split)
        for name in names:
            _refuse_escape(self.root, self.root / split / name)
        faults = [f"{name} is missing" for name in sorted(set(expected) - set(names))]
        faults += [f"{name} is foreign" for name in sorted(set(names) - set(expected))]
        if faults:
            message = in_one_line([printable(fault) for fault in faults])
            raise DataError(
                f"{printable(self.root / split)}: not the scenes of {MANIFEST}: {message}; repeat bpfn subset"
            )

    def _open(self, split: str, names: tuple[str, ...]) -> SceneDataset:
        stored, options = stored_split(split), self.manifest.task.options
        scenes = super()._open(split, names)
        if names and self.manifest.packed:
            file = self.root / packed_name(stored)
            scenes = open_packed(file, scenes)
            if scenes.names != names:
                fault = f"holds other scenes than {MANIFEST}"
                raise DataError(f"{printable(file)}: {fault}; repeat bpfn subset with --force")
        if split == "train" or options.val_fraction is not None:
            return replace(scenes, label=f"{scenes.label} ({options.label(stored)})")
        return scenes

    @functools.cached_property
    def identity(self) -> DataIdentity:
        packed = self.manifest.packed
        for name, record in packed.items():
            with open_regular(self.root / name, MAX_PACKED_BYTES) as (_, size):
                if size != record.bytes:
                    found = f"{size} bytes found, {record.bytes} expected"
                    raise DataError(f"{printable(self.root / name)}: {found}; download it again")
        with disk_errors(self.root):
            sizes = {} if packed else self.format.file_sizes(self.root, self.scenes)
        sizes |= {name: record.bytes for name, record in packed.items()}
        options, sha256 = self.manifest.task.options, sha256_of(self.root / MANIFEST)
        fraction, method, seed = options.fraction, options.method, options.seed
        return self._identified("subset", sizes, sha256, fraction=fraction, method=method, seed=seed)


def _refuse_escape(root: Path, folder: Path) -> None:
    """Raises: DataError: a link leads out of the subset."""
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{printable(folder)}: a link out of the subset; make the subset again with --force")
