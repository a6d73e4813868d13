"""Build the image of README.md from the overlays of `make demo`, which must have run before."""

from pathlib import Path

from PIL import Image

HEIGHT, GAP = 400, 12
REPO = Path(__file__).resolve().parents[1]


def main() -> None:
    """Read demo/*.overlay.png and write docs/images/demo.jpg."""
    pictures = [Image.open(REPO / "demo" / f"{name}.overlay.png") for name in ("chelsea", "astronaut", "coffee")]
    scaled = [
        p.convert("RGB").resize((p.width * HEIGHT // p.height, HEIGHT), Image.Resampling.LANCZOS) for p in pictures
    ]
    sheet = Image.new("RGB", (sum(p.width for p in scaled) + GAP * (len(scaled) - 1), HEIGHT), "white")
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    sheet.save(REPO / "docs" / "images" / "demo.jpg", quality=90)


if __name__ == "__main__":
    main()
