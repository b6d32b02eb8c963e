"""Compares packages entry by entry, for `sparsehub compare` and the console: overlap and agreement in sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsehub.delta import Overlap, overlap
from sparsehub.errors import UsageError
from sparsehub.package.reader import Package
from sparsehub.progress import work


@dataclass(frozen=True)
class PackageComparison:
    """The pairwise overlaps of some packages of one backbone."""

    names: tuple[str, ...]  # of the tasks; with version, and then digest, where two would have the same name
    overlaps: tuple[tuple[Overlap, ...], ...]  # [i][j]: of task i with task j

    @property
    def matrices(self) -> dict[str, list[list[float]]]:
        """The two matrices that `plots.draw_matrices` draws, by title."""
        return {
            "entries that both change,\nof those that either does": [
                [cell.jaccard for cell in row] for row in self.overlaps
            ],
            "of these, changed in the same\ndirection (chance gives 50%)": [
                [cell.sign_agreement for cell in row] for row in self.overlaps
            ],
        }


def compare_packages(packages: Sequence[Package]) -> PackageComparison:
    """Compare packages in pairs, entry by entry.

    Raises `UsageError` for packages of different backbones, whose entries have nothing in common, and for `set` values,
    whose signs are not those of a change.
    """
    backbones = {package.manifest.backbone.fingerprint: package.manifest.backbone.id for package in packages}
    if len(backbones) > 1:
        raise UsageError("these tasks are not on one backbone", found=", ".join(backbones.values()))
    replaced = [package.manifest.name for package in packages if package.delta.value_kind != "add"]
    if replaced:
        raise UsageError("only `add` values have a direction", found=f"`set` values in {', '.join(replaced)}")
    with work(f"comparing {len(packages)} packages"):
        rows = tuple(tuple(overlap(a.delta, b.delta) for b in packages) for a in packages)
    return PackageComparison(_names(packages), rows)


def _names(packages: Sequence[Package]) -> tuple[str, ...]:
    names = [package.manifest.name for package in packages]
    versions = [f"{package.manifest.name}@{package.manifest.version}" for package in packages]
    digests = [f"{version} {package.digest[:19]}" for version, package in zip(versions, packages, strict=True)]
    return tuple(next((each for each in (names, versions) if len(set(each)) == len(each)), digests))
