"""Files of a hub's repository, brought into a cache.

Where `huggingface_hub` is installed it does it: with its cache, resuming, tokens and its offline
mode. Elsewhere `keras.utils.get_file` brings the file into Keras' cache, of public repositories.
"""

import importlib.util
import os
import pathlib
import re
import tempfile

import keras

from keras_internimage.checkpoints import download
from keras_internimage.checkpoints.errors import CheckpointError, DownloadError

SCHEME = "hf://"
ENDPOINT = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
EXTRA = "pip install keras-internimage[hub]"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(rf"{SCHEME}({_PART}/{_PART})(?:@({_PART}))?")


def is_address(place: object) -> bool:
    """Whether something is meant as an address of the hub, `hf://...`."""
    return isinstance(place, str) and place.startswith(SCHEME)


class Fetcher:
    """`Fetcher(address)(file)`: the path of a repository's file in the cache.

    All files are of one revision: the one that the first file is of.

    Args:
        address: `hf://organisation/name`, with `@revision` for a branch, a tag or a commit.

    Raises:
        CheckpointError: the address is not as said above.
    """

    def __init__(self, address: str):
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise CheckpointError(
                "An address of the hub must be hf://organisation/name or "
                f"hf://organisation/name@revision. Received: {address}"
            )
        self.address = address
        self._repository, self._revision = match[1], match[2]
        self._by_library = importlib.util.find_spec("huggingface_hub") is not None

    def __call__(self, file: str) -> pathlib.Path:
        """Brings a file into the cache, unless it is there; its path.

        Raises:
            DownloadError: the file could not be had.
        """
        path = self._fetch(file, False)
        if path is None:
            raise self._failure(file, "the repository has no such file")
        return path

    def optional(self, file: str) -> pathlib.Path | None:
        """As a call, but None where the repository has no such file."""
        return self._fetch(file, True)

    def _fetch(self, file, optional):
        fetch = self._with_library if self._by_library else self._with_keras
        return fetch(file, optional)

    def _with_library(self, file, optional):
        import huggingface_hub
        from huggingface_hub import errors

        try:
            path = huggingface_hub.hf_hub_download(
                self._repository,
                file,
                revision=self._revision,
                endpoint=os.environ.get(ENDPOINT_VARIABLE) or None,
            )
        except errors.LocalEntryNotFoundError as error:
            if optional and self._known_to_be_absent(file):
                return None
            reason = "not in the cache, and the hub cannot be reached"
            raise self._failure(file, reason) from error
        except errors.EntryNotFoundError as error:
            if optional:
                return None
            raise self._failure(file, "the repository has no such file") from error
        except errors.GatedRepoError as error:
            reason = "the repository is gated: accept its terms, and log in by `hf auth login`"
            raise self._failure(file, reason) from error
        except errors.RevisionNotFoundError as error:
            raise self._failure(file, "there is no such revision") from error
        except errors.RepositoryNotFoundError as error:
            reason = "there is no such repository, or it is private and needs `hf auth login`"
            raise self._failure(file, reason) from error
        except Exception as error:  # of httpx, of the operating system, of the library
            text = str(error).strip().partition("\n")[0] or type(error).__name__
            raise self._failure(file, text) from error
        path = pathlib.Path(path)
        self._revision = path.parent.name  # the commit
        return path

    def _known_to_be_absent(self, file):
        """Whether the library noted, when the hub was last reached, that there is no such file."""
        import huggingface_hub

        options = {"revision": self._revision} if self._revision else {}
        found = huggingface_hub.try_to_load_from_cache(self._repository, file, **options)
        return found is not None and not isinstance(found, str)

    def _with_keras(self, file, optional):
        organisation, _, name = self._repository.partition("/")
        revision = self._revision or "main"
        folder = pathlib.Path(
            download.cache_directory(), "hub", f"{organisation}--{name}", revision
        )
        path = folder / file
        if path.is_file():
            return path
        if optional and (folder / f".no-{file}").is_file():
            return None
        base = (os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        url = f"{base}/{self._repository}/resolve/{revision}/{file}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            try:
                with download.timeout():
                    arrived = keras.utils.get_file(
                        file, origin=url, cache_dir=temporary, cache_subdir=""
                    )
            except Exception as error:  # get_file wraps what it meets in plain Exceptions
                status = download.http_status(error)
                if status == 404 and optional:
                    (folder / f".no-{file}").touch()
                    return None
                reason = download.reason(error)
                if status in (401, 403):
                    reason += f"; a private or gated repository needs {EXTRA} and a token"
                raise self._failure(file, reason) from error
            os.replace(arrived, path)
        return path

    def _failure(self, file, reason):
        return DownloadError(
            f"{file} of {self.address} could not be downloaded ({reason.rstrip('.')}). Without a "
            "connection, give the path of a folder with the repository's files. "
            f"Received: {self.address}"
        )
