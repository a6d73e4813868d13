"""evidence.npz: what an evaluation saw, image by image, so that two runs can be compared later without a model."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusioner.errors import FusionerError
from fusioner.evaluation.evaluate import Outcome
from fusioner.evaluation.results import Evidence, Group, Plan, Rows
from fusioner.io import atomic_write

EVIDENCE = "evidence.npz"
FORMAT = "fusioner-evidence-1"
_TABLES = ("pairs", "blind", "absent")
_KEPT = ("protocol", "listed_only", "background", "others", "background_counts", "threshold", "squash", "seed")


@dataclass(frozen=True)
class Stored:
    """An evaluation read back: its folder, data set, class names by id, and the evidence of each fold (or of None)."""

    folder: Path
    dataset: str
    classes: list[str]
    folds: dict[int | None, Evidence]


def write_evidence(folder: Path, outcome: Outcome) -> Path:
    """Write evidence.npz into `folder`, whole or not at all -> its path.

    Raises:
        FusionerError: no space, no permission.
    """
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"format": FORMAT, "dataset": outcome.data.name, "classes": list(outcome.data.classes)}
    about["folds"] = [
        {"fold": fold, "plan": _plan(one.evidence), "groups": _groups(one.evidence)}
        for fold, one in outcome.folds.items()
    ]
    for number, one in enumerate(outcome.folds.values()):
        arrays |= {f"{number}/{name}": array for name, array in _arrays(one.evidence).items()}
    path = folder / EVIDENCE
    with atomic_write(path) as beside:
        np.savez_compressed(beside, about=np.array(json.dumps(about)), **arrays)
    return path


def read_evidence(folder: Path) -> Stored:
    """The evidence that `fusioner evaluate --out folder` left.

    Raises:
        FusionerError: there is none, or it is damaged.
    """
    path = Path(folder) / EVIDENCE
    if not path.is_file():
        raise FusionerError(f"{folder} holds no {EVIDENCE}: give the --out folder of a `fusioner evaluate`")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about.get("format") != FORMAT:
                raise FusionerError(f"{path} was written by another version of fusioner: evaluate again")
            folds = {
                one["fold"]: _evidence(one, {k.split("/", 1)[1]: file[k] for k in file if k.startswith(f"{number}/")})
                for number, one in enumerate(about["folds"])
            }
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise FusionerError(f"{path} is damaged ({error}): evaluate again") from error
    return Stored(Path(folder), about["dataset"], about["classes"], folds)


def _plan(evidence: Evidence) -> dict[str, Any]:
    return {name: getattr(evidence.plan, name) for name in _KEPT}


def _groups(evidence: Evidence) -> dict[str, list[int]]:
    return {name: list(group.class_ids) for name, group in evidence.groups.items()}


def _arrays(evidence: Evidence) -> dict[str, np.ndarray]:
    arrays = {"images": np.array(evidence.plan.images, dtype=np.str_)}
    for table in _TABLES:
        rows: Rows = getattr(evidence, table)
        arrays |= {f"{table}/image": rows.image, f"{table}/class_id": rows.class_id, f"{table}/values": rows.values}
    for name, group in evidence.groups.items():
        arrays |= {f"groups/{name}/counts": group.counts, f"groups/{name}/confusion": group.confusion}
    return arrays


def _evidence(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Evidence:
    groups = {
        name: Group(tuple(ids), arrays[f"groups/{name}/counts"], arrays[f"groups/{name}/confusion"])
        for name, ids in about["groups"].items()
    }
    kept: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in about["plan"].items()
    }
    plan = Plan(images=tuple(arrays["images"].tolist()), **kept)
    tables = [Rows(*(arrays[f"{table}/{column}"] for column in ("image", "class_id", "values"))) for table in _TABLES]
    return Evidence(plan, tables[0], tables[1], tables[2], groups, [], [])
