"""Results of an earlier run that need not be made again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusioner.formats import FORMATS


class Earlier:
    """Knows results by their files: all there, none older than what they were made of, and the JSON, where it is one
    of them, tells of the same picture name and what the command asks for.
    """

    def __init__(self, told: Mapping[str, Any], made_of: Sequence[Path]) -> None:
        """`told`: what a JSON has to say; `made_of`: files beside the picture that results depend on, as the model."""
        self._told, self._made_of = dict(told), tuple(made_of)

    def find(
        self, picture: Path, name: str, folder: Path, stem: str, kinds: Sequence[str]
    ) -> list[dict[str, Any]] | None:
        """What the JSON says of each label, [] without a JSON; None: the results have to be made.

        Args:
            picture: the file they are of.
            name: its name in the JSON.
            folder, stem, kinds: where the results would be.
        """
        paths = {kind: folder / f"{stem}{FORMATS[kind].suffix}" for kind in kinds}
        if not self.newer(picture, list(paths.values())):
            return None
        if "json" not in paths:
            return []
        try:
            told = json.loads(paths["json"].read_bytes())
            same = all(told[key] == value for key, value in (self._told | {"image": name}).items())
            return told["segments"] if same else None
        except (OSError, ValueError, KeyError, TypeError):  # not ours
            return None

    def newer(self, picture: Path, results: Sequence[Path]) -> bool:
        """Whether all `results` are there and none is older than the picture or what else they are made of."""
        try:
            changed = max(path.stat().st_mtime for path in (picture, *self._made_of))
            return all(path.stat().st_mtime >= changed for path in results)
        except OSError:
            return False
