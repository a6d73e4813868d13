"""`fusioner models`: the registered encoders."""

import json
from typing import Annotated, Any

from cyclopts import Parameter

from fusioner.encoders.registry import IMAGE_ENCODERS, TEXT_ENCODERS


def models(*, as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")] = False) -> None:
    """List the image and text encoders: name, licence, parameters, download size, access.

    A name loads the published weights, downloaded once. `NAME@/folder` reads them from a folder, `hf:REPOSITORY` or
    `hf:/folder` is any other model of a supported type, `openclip:REPOSITORY` any CLIP of open_clip, and `A+B`
    concatenates several image encoders. A download marked ~ is estimated at 4 bytes per parameter.

        fusioner models
    """
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "name": name,
            "licence": spec.licence,
            "parameters_millions": spec.parameters,
            "download_mb": spec.download,
            "download_estimated": spec.estimated,
            "gated": spec.gated,
            "source": spec.source or "in the package",
        }
        for kind, table in (("image", IMAGE_ENCODERS), ("text", TEXT_ENCODERS))
        for name, spec in table.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for kind in ("image", "text"):
        print(f"{kind + ' encoder':<22}{'licence':<14}{'parameters':>11}{'download':>10}  source")
        for row in rows:
            if row["kind"] == kind:
                about = "~" if row["download_estimated"] else ""
                download = f"{about}{row['download_mb']} MB" if row["download_mb"] else "-"
                gate = " (accept its licence there)" if row["gated"] else ""
                parameters = f"{row['parameters_millions']:.1f} M"
                name, licence, source = row["name"], row["licence"], row["source"]
                print(f"{name:<22}{licence:<14}{parameters:>11}{download:>10}  {source}{gate}")
        print()
