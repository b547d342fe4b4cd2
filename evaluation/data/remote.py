"""Downloads single data files at a pinned revision; never a script, never an entire repository."""

from __future__ import annotations

import functools
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from common.errors import UserError
from evaluation.data.sources import File, Source

_RAW = "https://raw.githubusercontent.com"
_TIMEOUT = 60.0  # seconds without a byte


@functools.cache
def _newest(repository: str) -> str:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repository, timeout=_TIMEOUT).sha


def _from_hub(source: Source, file: File, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            source.repository, file.path, repo_type="dataset", revision=revision or None
        )
    )


def _from_github(source: Source, file: File, revision: str, folder: Path) -> Path:
    url = f"{_RAW}/{source.repository}/{revision}/{file.path}"
    path = folder / source.repository / file.path
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as stream:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.read())
    return path


class Remote:
    """Fetches sources' files and remembers the revision each came from.

    A context manager: files outside the hub's cache are removed at its end.
    """

    def __enter__(self) -> Remote:
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def revision(self, source: Source) -> str:
        """Return the revision to fetch: the pinned one, else the newest.

        Raises:
            UserError: It is not pinned and the hub does not answer.
        """
        if source.revision:
            return source.revision
        try:
            return _newest(source.repository)
        except Exception as error:
            raise _failure(source, source.files["items"], error) from None

    def fetch(self, source: Source, role: str) -> tuple[Path, File]:
        """Download a role's file of a source; return its path and its entry in the table.

        Raises:
            UserError: Nothing could be downloaded; the message names the local alternative.
        """
        file, revision = source.files[role], self.revision(source)
        try:
            if source.host == "hub":
                return _from_hub(source, file, revision), file
            return _from_github(source, file, revision, Path(self._folder.name)), file
        except Exception as error:
            raise _failure(source, file, error) from None


def _failure(source: Source, file: File, error: Exception) -> UserError:
    """Say in one line why a file did not come; the libraries raise errors of many families."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    reason = "HF_HUB_OFFLINE is set" if offline and source.host == "hub" else type(error).__name__
    if isinstance(error, urllib.error.URLError):
        reason = f"{reason}: {getattr(error, 'reason', error)}"
    first = source.candidates("items")[-1].path
    return UserError(
        f"{source.name}: {source.repository}/{file.path} at {source.revision or 'its newest'} "
        f"could not be downloaded ({reason}); connect and try again, or give local copies: "
        f"--source DIR with DIR/{first}"
    )
