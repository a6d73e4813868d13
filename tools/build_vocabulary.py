"""Write docs/vocabulary.md: which nouns a model finds, from the metrics.json files of `fusioner evaluate`.

    python tools/build_vocabulary.py "PASCAL val"=report_pascal/metrics.json "COCO val"=report_coco/metrics.json

Every file must come from an argmax over all classes of its set (own folders).
"""

import json
import sys
from pathlib import Path

from fusioner.data.classes import prompt_of

OUT = Path(__file__).resolve().parents[1] / "docs" / "vocabulary.md"
BANDS = (("Found well", 50.0), ("Found in part", 20.0), ("Found now and then", 5.0), ("Not found", 0.0))


def read(path: Path) -> tuple[dict[str, float], str]:
    """Return the IoU (per cent) of every noun in the set's masks, and a description of the set."""
    metrics = json.loads(path.read_text("utf-8"))
    nouns = {prompt_of(name): value for name, value in metrics["per_class"].items() if value is not None}
    description = f"{metrics['images']} images, mode {metrics['mode']}, {len(nouns)} nouns in their masks"
    return nouns, f"{description}, mIoU {metrics['miou']:.1f}"


def page(sets: dict[str, tuple[dict[str, float], str]]) -> str:
    """Return the page as Markdown: the sets, then the nouns in bands, the best first."""
    entries = [(value, noun, name) for name, (nouns, _) in sets.items() for noun, value in nouns.items()]
    lines = [
        "# Vocabulary",
        "",
        "Which nouns the bundled model finds, measured where masks exist: all names of a set are prompted at once on",
        "images outside of its training, each pixel takes the likeliest label or background, and the value is the IoU",
        "of the noun over all images, in per cent. A noun in two sets has two values because other labels compete.",
        "",
        "| set | measured on |",
        "|---|---|",
        *(f"| {name} | {description} |" for name, (_, description) in sets.items()),
        "",
    ]
    ceiling = float("inf")
    for title, floor in BANDS:
        band = sorted((entry for entry in entries if floor <= entry[0] < ceiling), reverse=True)
        words = ", ".join(f"{noun} {value:.0f} ({name})" for value, noun, name in band)
        lines += [f"## {title}: {len(band)} of {len(entries)}, IoU {floor:.0f} and above", "", words or "none", ""]
        ceiling = floor
    return "\n".join(lines)


def main() -> None:
    """Read the files named on the command line and write the page."""
    pairs = [word.rpartition("=")[::2] for word in sys.argv[1:]]
    if not pairs or not all(name for name, _ in pairs):
        sys.exit(__doc__)
    OUT.write_text(page({name: read(Path(path)) for name, path in pairs}), encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
