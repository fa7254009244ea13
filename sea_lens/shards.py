"""Batches of a long job kept as they come, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sea_lens.errors import FileFormatError
from sea_lens.tensor_files import load_tensors, save_tensors, write_text


def claim_folder(folder: Path, job: str, manifest: Mapping[str, object]) -> None:
    """Starts a job in a folder, by writing its manifest there as `{job}.json`, or takes up one with the same manifest.

    Args:
        folder: Where; made if it is not there.
        job: What it is of, in a word.
        manifest: All that decides the job's result, as plain JSON values.

    Raises:
        FileFormatError: If the folder holds another one.
    """
    path = folder / f"{job}.json"
    wanted = json.loads(json.dumps(manifest))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} could not be read: {error}. Delete the folder to start anew.") from error
        if not isinstance(found, dict):
            raise FileFormatError(f"{path} is not a {job}'s. Delete the folder to start anew.")
        different = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if different:
            raise FileFormatError(
                f"{folder} holds a {job} that differs in {', '.join(different)}. Choose another folder, or "
                "delete this one."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=1) + "\n")


class Shards:
    """The folder of a running job: a manifest and one file a finished batch, each whole or absent.

    Attributes:
        folder: Where.
        job: What it is of, in a word: the manifest is `{job}.json`.
        shapes: Of the batches, in order.
    """

    def __init__(
        self, folder: Path, job: str, manifest: Mapping[str, object], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """Starts a job, or takes up one with the same manifest.

        Raises:
            FileFormatError: If the folder holds another one.
        """
        self.folder, self.job, self.shapes = folder, job, shapes
        claim_folder(folder, job, manifest)

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:06d}.safetensors"

    def read(self, number: int) -> Tensor | None:
        """A finished batch; None where it is missing or damaged, and so to be done again."""
        try:
            found = load_tensors(self._path(number))[0].get("batch")
        except FileFormatError:
            return None
        return found if found is not None and tuple(found.shape) == self.shapes[number] else None

    def write(self, number: int, batch: Tensor) -> None:
        """Keeps a finished batch."""
        save_tensors({"batch": batch}, self._path(number), {"job": self.job})

    def clear(self) -> None:
        """Removes the batches, once what they were for is whole."""
        for number in range(len(self.shapes)):
            self._path(number).unlink(missing_ok=True)
