"""Build the image of docs/failures.md: errors of the bundled model on the sample photographs."""

from pathlib import Path

from PIL import Image

import fusioner

REPO = Path(__file__).resolve().parents[1]
WIDTH, GAP = 420, 10
CASES = (
    ("coffee", "cup, spoon, table"),
    ("coffee", "saucer, wood, coffee"),
    ("astronaut", "face, suit, gloves, helmet"),
    ("chelsea", "dog, tiger, sofa"),
    ("chelsea", "eye, nose, ear, whiskers"),
    ("astronaut", "space shuttle, person, flag"),
)


def main() -> None:
    """Segment the samples and write docs/images/failures.jpg, three overlays per row."""
    segmenter = fusioner.load()
    pictures = [segmenter(REPO / "samples" / f"{name}.jpg", labels).overlay().convert("RGB") for name, labels in CASES]
    small = [p.resize((WIDTH, p.height * WIDTH // p.width), Image.Resampling.LANCZOS) for p in pictures]
    rows = [small[i : i + 3] for i in range(0, len(small), 3)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, sum(heights) + GAP * (len(rows) - 1)), "white")
    for number, row in enumerate(rows):
        top = sum(heights[:number]) + GAP * number
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (WIDTH + GAP), top))
    sheet.save(REPO / "docs" / "images" / "failures.jpg", quality=85)


if __name__ == "__main__":
    main()
