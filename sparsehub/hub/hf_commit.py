"""The files of a commit that publishes a package on the Hugging Face Hub, and the check that the Hub can find it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import CommitOperationAdd

from sparsehub.errors import IntegrityError, UsageError
from sparsehub.hub.backend import Upload

LIBRARY = "sparsehub"
SMALL = 4 << 20  # bytes; files up to this size are read before they are sent, the client hashes larger ones itself


def additions(upload: Upload) -> list[CommitOperationAdd]:
    """The files of a commit that holds a package; raises `IntegrityError` where one changed after validation."""
    from sparsehub.package.metadata import eval_results
    from sparsehub.package.summary import summarize

    manifest = upload.manifest
    results = eval_results(summarize(manifest))
    made = {"sparsehub.json": manifest.to_bytes(), "model.sig": upload.signature, **results}
    operations = [CommitOperationAdd(path, data) for path, data in made.items() if data is not None]
    for name, record in upload.files.items():
        path = upload.folder / name
        content: Any = path.read_bytes() if record.size <= SMALL else path
        operation = CommitOperationAdd(name, content)
        if "sha256:" + operation.upload_info.sha256.hex() != record.sha256:
            raise IntegrityError(f"{name} changed while it was published", fix="publish the package again")
        operations.append(operation)
    return operations


def check_card(upload: Upload) -> None:
    """Raises `UsageError` for a card without the line by which the Hugging Face Hub finds packages."""
    card = (upload.folder / "README.md").read_text(encoding="utf-8") if "README.md" in upload.files else ""
    head = card.partition("---\n")[2].partition("\n---")[0] if card.startswith("---\n") else ""
    if f"library_name: {LIBRARY}" not in head.splitlines():
        fix = f"begin README.md with a YAML block that holds `library_name: {LIBRARY}`, as sparsehub's own cards do"
        raise UsageError("nobody would find this package on the Hugging Face Hub", found="no library_name", fix=fix)
