"""Several packages beside each other: which entries they share, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsehub.delta import Overlap, overlap
from sparsehub.errors import UsageError
from sparsehub.package.reader import Package


@dataclass(frozen=True)
class PackageComparison:
    """names: of the tasks, with versions where a name comes twice, and with digests where that tells no two apart;
    overlaps: [i][j], of task i with task j."""

    names: tuple[str, ...]
    overlaps: tuple[tuple[Overlap, ...], ...]

    @property
    def matrices(self) -> dict[str, list[list[float]]]:
        """What `pictures.draw_matrices` draws, by title."""
        return {
            "entries that both change,\nof those that either does": [
                [cell.jaccard for cell in row] for row in self.overlaps
            ],
            "of these, changed in the same\ndirection (chance gives 50%)": [
                [cell.sign_agreement for cell in row] for row in self.overlaps
            ],
        }


def compare_packages(packages: Sequence[Package]) -> PackageComparison:
    """Compare them in pairs, entry by entry. Raises `UsageError`: overlap means nothing across backbones, and signs
    nothing where values replace weights."""
    backbones = {package.manifest.backbone.fingerprint: package.manifest.backbone.id for package in packages}
    if len(backbones) > 1:
        raise UsageError("these tasks are not on one backbone", found=", ".join(backbones.values()))
    replaced = [package.manifest.name for package in packages if package.delta.value_kind != "add"]
    if replaced:
        raise UsageError("only `add` values have a direction", found=f"`set` values in {', '.join(replaced)}")
    rows = tuple(tuple(overlap(a.delta, b.delta) for b in packages) for a in packages)
    return PackageComparison(_names(packages), rows)


def _names(packages: Sequence[Package]) -> tuple[str, ...]:
    names = [package.manifest.name for package in packages]
    versions = [f"{package.manifest.name}@{package.manifest.version}" for package in packages]
    digests = [f"{version} {package.digest[:19]}" for version, package in zip(versions, packages, strict=True)]
    return tuple(next((each for each in (names, versions) if len(set(each)) == len(each)), digests))
