"""Where a reference's files come from: the hub, or a folder that mirrors it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import sha256_file, sha256_json
from paper.hub.table import Reference

_TIMEOUT = 60.0  # seconds without an answer


@dataclass(frozen=True)
class Remote:
    """A file as its place describes it.

    Attributes:
        path: In the repository.
        size: In bytes.
        sha256: Of its bytes, where the place gives it; else empty.
        blob: Its git hash, where the place gives no sha256.
    """

    path: str
    size: int
    sha256: str
    blob: str


class Hub:
    """The Hugging Face hub, or the server that HF_ENDPOINT names."""

    def listing(self, reference: Reference, revision: str) -> tuple[str, dict[str, Remote]]:
        """List a repository's files.

        Args:
            reference: The row of the table.
            revision: Full commit; empty for the newest.

        Returns:
            The commit that was listed, and its files by path.
        """
        from huggingface_hub import HfApi

        info = HfApi().repo_info(
            reference.repository,
            repo_type=reference.kind,
            revision=revision or None,
            timeout=_TIMEOUT,
            files_metadata=True,
        )
        files = {
            sibling.rfilename: Remote(
                sibling.rfilename,
                sibling.size or 0,
                sibling.lfs.sha256 if sibling.lfs else "",
                sibling.blob_id or "",
            )
            for sibling in info.siblings or ()
        }
        return info.sha, files

    def download(self, reference: Reference, revision: str, file: Remote, folder: Path) -> Path:
        """Put a file below a folder, under its path in the repository; return where it is."""
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                reference.repository,
                file.path,
                repo_type=reference.kind,
                revision=revision,
                local_dir=folder,
            )
        )


class Mirror:
    """A folder with copies of repositories, DIR/OWNER/NAME; needs no network.

    Its revision is a hash of the files' hashes, 40 digits as a commit has.

    Args:
        folder: DIR.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listing(self, reference: Reference, revision: str) -> tuple[str, dict[str, Remote]]:
        """List a repository's files; see `Hub.listing`."""
        top = self._folder / reference.repository
        paths = sorted(path for path in top.rglob("*") if path.is_file())
        if not paths:
            raise UserError(
                f"{reference.id}: the mirror has no {top}; copy the repository there, or leave the "
                "mirror out"
            )
        files = {
            name: Remote(name, path.stat().st_size, sha256_file(path), "")
            for path in paths
            if not (name := str(path.relative_to(top))).startswith(".")
        }
        commit = sha256_json({name: file.sha256 for name, file in files.items()})[:40]
        if revision and revision != commit:
            raise UserError(
                f"{reference.id}: {top} is revision {commit[:12]}, and {revision[:12]} is asked "
                "for; a mirror needs its own lock (--lock)"
            )
        return commit, files

    def download(self, reference: Reference, revision: str, file: Remote, folder: Path) -> Path:
        """Copy a file; see `Hub.download`."""
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / reference.repository / file.path, path)
        return path
