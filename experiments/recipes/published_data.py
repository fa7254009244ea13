"""The data sets of the paper's protocol at their public addresses, fetched once and checked whenever they are opened."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from sea_lens.errors import FileFormatError, InputError

RAW = "https://raw.githubusercontent.com"
TIMEOUT = 60.0
"""Seconds without an answer after which fetching gives up."""


@dataclass(frozen=True)
class PublishedData:
    """A data set on the web, of one file or of several that are joined into one.

    Attributes:
        name: The name of the file that is read.
        files: Addresses, with git's own hash of the contents that recipes were written for.
    """

    name: str
    files: Mapping[str, str]

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        first, *more = self.files
        return first if not more else f"the {len(self.files)} files in {first.rpartition('/')[0]}"

    def fetch(self, folder: str | Path | None = None) -> Path:
        """The file, from the cache or from the web.

        Args:
            folder: The cache; for None the folder that the environment's `SEA_LENS_CACHE` names, or `~/.cache/sea_lens`.

        Raises:
            InputError: If an address does not answer, as offline.
            FileFormatError: If the contents, fetched or in the cache, are not those that recipes were written for.
        """
        cache = cache_folder() if folder is None else Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        parts = [_part(cache, address, expected, self.name) for address, expected in self.files.items()]
        joined = b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)
        target = cache / self.name
        if not target.exists() or target.read_bytes() != joined:
            _write(target, joined)
        return target


def cache_folder() -> Path:
    """The folder of fetched data sets: what the environment's `SEA_LENS_CACHE` names, or `~/.cache/sea_lens`."""
    return Path(os.environ.get("SEA_LENS_CACHE") or Path.home() / ".cache" / "sea_lens")


def git_hash(contents: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def _part(cache: Path, address: str, expected: str, name: str) -> bytes:
    kept = cache / f"{expected[:12]}-{address.rpartition('/')[2]}"
    contents = kept.read_bytes() if kept.exists() else _read(address, name)
    if git_hash(contents) != expected:
        where = f"{kept} was changed since it was fetched" if kept.exists() else f"{address} has other contents now"
        raise FileFormatError(
            f"{where}, so numbers would not compare with published ones. "
            f"{'Delete it to fetch it again' if kept.exists() else 'Look at the file'}, or give a file of your own."
        )
    if not kept.exists():
        _write(kept, contents)
    return contents


def _write(path: Path, contents: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(contents)
    partial.replace(path)


def _read(address: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            contents: bytes = answer.read()
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{address} could not be fetched: {error}. Go online, or fetch {name} elsewhere and give its path."
        ) from error
    return contents


BBQ_COMMIT = f"{RAW}/nyu-mll/BBQ/bea11bd97d79217245b5871acd247b9d6eb24598/data"
HALUEVAL = PublishedData(
    "halueval-qa.json",
    {
        f"{RAW}/RUCAIBox/HaluEval/b7253db3cdaa0ab2c382f92b26b390109174f77e/data/qa_data.json": (
            "981d8944c2a74937a9556d50dd12ffb493d95c27"
        )
    },
)
"""HaluEval's question answering, 10,000 rows (Li et al. 2023), MIT licence."""
TRUTHFULQA = PublishedData(
    "TruthfulQA.csv", {f"{RAW}/sylinrl/TruthfulQA/main/TruthfulQA.csv": "4215d4b236c68216a2c36f19959305900ad64c3a"}
)
"""TruthfulQA (Lin et al. 2022), Apache-2.0 licence. The hash is that of the version with 817 questions."""
BBQ = PublishedData(
    "bbq.jsonl",
    {
        f"{BBQ_COMMIT}/Age.jsonl": "5c5e7586163b869fe029e77e63716f2026e4ae08",
        f"{BBQ_COMMIT}/Disability_status.jsonl": "9aedeccaf599299cdfa523531d625ae85ecb9131",
        f"{BBQ_COMMIT}/Gender_identity.jsonl": "dc79ceaaa9e7126edc99a200d632899c50274b16",
        f"{BBQ_COMMIT}/Nationality.jsonl": "cba9b63d34536cb51a6cbae76b189df3d2a945c0",
        f"{BBQ_COMMIT}/Physical_appearance.jsonl": "8cbdf83265459083224e3a2d37809294ff12ad77",
        f"{BBQ_COMMIT}/Race_ethnicity.jsonl": "68daf3d692b27a10596772b3b15742b26f0b110e",
        f"{BBQ_COMMIT}/Race_x_SES.jsonl": "905cd8a5b8734e2063fe524e69a38f0a71c75907",
        f"{BBQ_COMMIT}/Race_x_gender.jsonl": "dd09a905b284690445d36259d675243950fa0bd7",
        f"{BBQ_COMMIT}/Religion.jsonl": "44c1940ee22f00891ab4a5526a293691957aeacb",
        f"{BBQ_COMMIT}/SES.jsonl": "78d11ffbdb70f501617345e5c697d00045d57c29",
        f"{BBQ_COMMIT}/Sexual_orientation.jsonl": "a06351f4dd67ba30632396eeb0c3677c67b7d387",
    },
)
"""BBQ's eleven categories, 58,492 questions (Parrish et al. 2022), CC-BY-4.0 licence."""
