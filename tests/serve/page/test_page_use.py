"""Use of the page in a real browser, with a toy model."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import fusioner

if TYPE_CHECKING:
    from playwright.sync_api import Page

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


@pytest.fixture
def opened(visit: Callable[..., "Page"], server: Any) -> Callable[..., "Page"]:
    """Return `opened(labels, **options of the browser)`: open the page with the cat's picture and these labels."""

    def opened(labels: str = "cat, sofa, wall", **options: Any) -> "Page":
        page = visit(server.address, **options)
        page.locator("#file").set_input_files(SAMPLES / "chelsea.jpg")
        page.get_by_label("What to find").fill(labels)
        page.keyboard.press("Enter")
        _settled(page, labels.split(", "))
        return page

    return opened


def test_labels_are_parted_at_separators_and_pasted_lines_and_named_once(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    page = opened("cat")
    words = page.get_by_label("What to find")
    words.press_sequentially(" polar   bear,Cat,")
    _settled(page, ["cat", "polar bear"])
    expect(page.locator("#words-error")).to_have_text("Cat is in the list already.")
    words.fill("a\nb, ,c")  # as pasted
    words.press("Enter")
    _settled(page, ["cat", "polar bear", "a b", "c"])  # the text box removes line breaks
    words.press("Backspace")
    words.press("Backspace")
    _settled(page, ["cat", "polar bear"])
    words.fill("d; e、f，g")
    words.press("Enter")
    words.evaluate("""box => {
      const clipboardData = new DataTransfer();
      clipboardData.setData("text", "h\\ni\\n");
      box.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    }""")
    _settled(page, ["cat", "polar bear", *"defghi"])


def test_refusals_and_notes_stand_in_the_rows_of_their_labels(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    page = opened("cat, cat's ear, 猫")
    notes = page.locator("#labels .hint")
    expect(notes).to_have_text(["", re.compile("^Parts of things"), re.compile("^Labels are understood in English")])
    page.get_by_label("What to find").fill(f"sofa,{'x' * 201},wall")
    page.keyboard.press("Enter")
    rows, found = page.locator("#labels li"), re.compile("%|found")
    expect(rows.locator(".share")).to_have_text([*[found] * 4, "", found])
    expect(rows.nth(4).locator(".error")).to_have_text("This label has 201 characters, the limit is 200.")
    expect(page.locator("#labels .error").filter(has_text=re.compile("."))).to_have_count(1)
    expect(page.locator("#words-error")).to_be_hidden()
    page.get_by_role("button", name="Remove xxx").click()
    page.get_by_label("What to find").fill("ear,")
    _settled(page, ["cat", "cat's ear", "猫", "sofa", "wall", "ear"])


def test_colour_and_hiding_stay_with_the_word_across_pictures(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    page = opened("cat, sofa")
    page.get_by_label("Colour of cat").fill("#ff00ff")
    page.get_by_role("button", name="Hide sofa").click()
    page.get_by_label("What to find").fill("Cat,")
    expect(page.locator("#words-error")).to_contain_text("in the list already")
    page.locator("#file").set_input_files(SAMPLES / "coffee.jpg")
    expect(page.locator("#pictures li")).to_have_count(2)
    expect(page.locator("#words-error")).to_be_hidden()  # it belonged to the previous picture
    expect(page.get_by_label("Colour of cat")).to_have_value("#ff00ff")
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found"), "hidden"])


def test_the_cut_out_is_transparent_where_no_label_is(opened: Callable[..., "Page"], downloaded: Callable[..., Any]):
    from playwright.sync_api import expect

    page = opened("cat, sofa", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Threshold").fill("0.5")
    download = downloaded(page, page.get_by_role("button", name="Cut-out", exact=True))
    pixels = np.asarray(Image.open(download.path()))
    photo = np.asarray(Image.open(SAMPLES / "chelsea.jpg").convert("RGB")).astype(int)
    shown = np.array(
        page.evaluate("""async () => {
      const { session } = await import("/static/app.js");
      const { decide, floorOf } = await import("/static/decide.js");
      const { current } = session;
      const planes = current.shown.map((label) => label.plane);
      return [...decide(planes, current.grid, current.size, floorOf(0.5, true))];
    }""")
    ).reshape(photo.shape[:2])
    assert ((pixels[..., 3] == 255) == (shown > 0)).all()
    assert np.abs(pixels[..., :3] - photo)[shown > 0].max(initial=0) <= 2
    page.get_by_role("button", name="Copy cut-out").click()
    expect(page.locator("#live")).to_have_text("Cut-out copied")
    assert page.evaluate("navigator.clipboard.read().then((items) => items[0].types)") == ["image/png"]


def test_finer_reads_windows_and_can_be_cancelled(
    opened: Callable[..., "Page"], server: Any, painted: Callable[..., str]
):
    from playwright.sync_api import expect

    page = opened("cat, sofa")
    whole = painted(page)
    finer = page.locator("#finer")
    cost = page.locator("#finer-cost")
    expect(cost).to_have_text(re.compile(r"^Sliding windows\d+ windows at full size, about \d+ (s|min)$"))
    half = server.encoder.calls + int(re.findall(r"\d+", cost.inner_text())[0]) // 2
    server.gate.clear()
    finer.click()
    expect(page.locator("#working")).to_have_text("Reading the picture in windows")
    expect(finer).to_have_text("Cancel")

    def stop_half_way(*_: Any) -> None:
        if server.encoder.calls >= half:
            server.gate.clear()

    stop = server.encoder.register_forward_hook(stop_half_way)
    server.gate.set()
    expect(page.locator("#working")).to_have_text(re.compile(r"^Reading the picture in windows, (4[5-9]|5[0-5]) %$"))
    stop.remove()
    finer.click()
    expect(finer).to_have_text("Finer")
    expect(page.locator("#working")).to_be_hidden()
    server.gate.set()
    painted(page, like=whole)
    finer.click()
    expect(cost).to_have_text(re.compile(r"^Sliding windowsRead in \d+ windows$"))
    _settled(page, ["cat", "sofa"])
    painted(page, unlike=[whole])
    expect(finer).to_be_disabled()


def test_waiting_is_announced_and_moves_nothing_but_a_thin_bar(opened: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = opened("cat")
    server.gate.clear()
    page.locator("#file").set_input_files(SAMPLES / "coffee.jpg")
    expect(page.locator("#live")).to_have_text(re.compile("Sending|Reading"))
    moving = page.evaluate("""document.getAnimations().map((animation) => [
      animation.effect.pseudoElement ?? "", animation.effect.target.id, animation.effect.target.clientHeight,
      Object.keys(animation.effect.getKeyframes()[0]).filter((name) => !/offset|easing|composite/i.test(name)),
    ])""")
    server.gate.set()
    assert moving == [["::after", "reading", 3, ["transform"]]]


def test_hide_recolour_remove_and_restyle_masks(opened: Callable[..., "Page"], painted: Callable[..., str]):
    from playwright.sync_api import expect

    page = opened("cat, sofa")
    hashes = [painted(page)]
    first, second = page.locator("#labels li").all()
    hide = first.get_by_role("button", name="Hide cat")
    hide.click()
    expect(first.locator(".share")).to_have_text("hidden")
    hashes.append(painted(page, unlike=hashes))
    hide.click()
    painted(page, like=hashes[0])
    for change in (
        lambda: first.get_by_label("Colour of cat").fill("#ff00ff"),
        lambda: page.get_by_label("Opacity").fill("0.9"),
        page.get_by_role("switch", name="Outlines").uncheck,
        second.get_by_role("button", name="Remove sofa").click,
    ):
        change()
        hashes.append(painted(page, unlike=hashes))
    expect(page.locator("#labels li")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove cat")).to_be_focused()


def test_rows_explain_missing_labels_and_a_click_shows_one_region(
    opened: Callable[..., "Page"], painted: Callable[..., str], downloaded: Callable[..., Any]
):
    from playwright.sync_api import expect

    page = opened("cat, sofa, wall")
    page.get_by_label("Threshold").fill("1")
    expect(page.locator("#labels .why")).to_have_text([re.compile(r"^at most [\d.]+ %$")] * 3)
    page.get_by_label("Threshold").fill("0")
    # Cat is certain in two corners and absent elsewhere, sofa less probable there, the third label nowhere.
    page.evaluate("""async () => {
      const { session } = await import("/static/app.js");
      const { labels, grid } = session.current;
      const corners = (value) => Float32Array.from(labels[0].plane, (_, cell) => {
        const [x, y] = [cell % grid.width, Math.floor(cell / grid.width)];
        return 2 * x < grid.width === 2 * y < grid.height ? -9 : value;
      });
      [9, 5, -9].forEach((value, index) => Object.assign(labels[index], { plane: corners(value), peak: value > 0 }));
    }""")
    page.get_by_label("Threshold").fill("0.5")
    why = page.locator("#labels .why")
    expect(why).to_have_text(["", "cat is likelier", "at most 0 %"])
    both = painted(page)
    page.get_by_role("switch", name="Regions apart").check()
    expect(why).to_have_text(["2 regions", "cat is likelier", "at most 0 %"])
    box = page.locator("#photo").bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    expect(page.locator("#live")).to_have_text(re.compile("^cat, region [12] of 2, alone$"))
    expect(page.locator("#probe b")).to_have_text(re.compile("^cat, region [12] of 2$"))
    single = painted(page, unlike=[both])
    alpha = np.asarray(Image.open(downloaded(page, page.get_by_role("button", name="Cut-out", exact=True)).path()))[
        ..., 3
    ]
    assert alpha[:140, 240:].min() == 255 > 0 == alpha[:, :220].max()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.9 * box["height"])
    painted(page, unlike=[both, single])
    page.keyboard.press("Escape")
    painted(page, like=both)


def test_before_and_after(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    page = opened()
    page.get_by_role("switch", name="Before and after").check()
    page.get_by_label("Divider of before and after").fill("100")
    before = page.locator("#frame").screenshot()
    page.get_by_label("Divider of before and after").fill("0")
    after = page.locator("#frame").screenshot()
    assert before != after
    divider = page.get_by_label("Divider of before and after").bounding_box()
    assert divider
    page.mouse.move(divider["x"] + 22, divider["y"] + 50)
    page.mouse.down()
    page.mouse.move(divider["x"] + divider["width"] / 2, divider["y"] + 80, steps=4)
    page.mouse.up()
    expect(page.get_by_label("Divider of before and after")).to_have_value(re.compile("^(4[5-9]|5[0-5])"))
    expect(page.locator("#masks")).to_have_css("clip-path", re.compile(r"inset\(0px 0px 0px (4[5-9]|5[0-5])"))
    page.get_by_role("switch", name="Before and after").uncheck()
    expect(page.get_by_label("Divider of before and after")).to_be_hidden()


def test_zoom_and_pan(opened: Callable[..., "Page"], measured: Callable[..., Any]):
    from playwright.sync_api import expect

    page = opened()
    frame, zoom = page.locator("#frame"), page.locator("#zoom-value")
    box = measured(page, "#frame")
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    whole = measured(page, "#photo")

    def times(scale: float) -> re.Pattern[str]:
        """Return the text of a scale relative to the whole picture; 100 % are the picture's own pixels."""
        percent = 100 * scale * whole["width"] / 451
        return re.compile(f"^({round(percent - 0.5)}|{round(percent + 0.5)}) %$")

    expect(zoom).to_have_text(times(1))
    page.get_by_role("button", name="Zoom in").click()
    expect(zoom).to_have_text(times(1.25))
    page.mouse.move(*middle)
    page.mouse.wheel(0, -400)
    expect(zoom).to_have_text(times(1.25 * np.exp(0.8)))
    zoomed = measured(page, "#photo", width=1.25 * np.exp(0.8) * whole["width"], near=1)
    page.mouse.down()
    page.mouse.move(middle[0] - 40, middle[1] - 25, steps=3)
    page.mouse.up()
    dragged = measured(page, "#photo", x=zoomed["x"] - 40, y=zoomed["y"] - 25, near=6)
    assert page.locator("#labels [aria-pressed=true]").count() == 0  # a drag is not a click
    frame.focus()
    page.keyboard.press("ArrowLeft")
    measured(page, "#photo", x=dragged["x"] + 60)
    for key, text in (("1", "100 %"), ("0", times(1)), ("+", times(1.25)), ("-", times(1))):
        page.keyboard.press(key)
        expect(zoom).to_have_text(text)
        if key == "1":
            measured(page, "#photo", width=451, height=300)
    measured(page, "#photo", **{side: whole[side] for side in ("x", "y", "width", "height")})
    zoom.click()
    expect(zoom).to_have_text("100 %")


def test_masks_of_an_enlarged_picture_are_painted_at_the_resolution_of_the_screen(
    opened: Callable[..., "Page"], measured: Callable[..., Any]
):
    page = opened("cat, sofa", device_scale_factor=2)
    page.get_by_role("switch", name="Background").uncheck()
    for _ in range(9):
        page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function("""() => {
      const frame = document.getElementById("frame").getBoundingClientRect();
      const overlay = document.getElementById("overlay");
      const place = overlay.getBoundingClientRect();
      const covers = ["x", "y", "width", "height"].every((side) => Math.abs(place[side] - frame[side]) <= 1);
      return covers && ["width", "height"].every((side) => Math.abs(overlay[side] - 2 * frame[side]) <= 4);
    }""")
    photo, frame = measured(page, "#photo"), measured(page, "#frame")
    measured(page, "#overlay", near=1, **{side: frame[side] for side in ("x", "y", "width", "height")})
    differing = page.evaluate(
        """async (part) => {
      const { session } = await import("/static/app.js");
      const { decide, probability } = await import("/static/decide.js");
      const { shown, grid } = session.current;
      const planes = shown.map((label) => label.plane);
      const near = decide(planes, grid, { width: 200, height: 150 }, -Infinity, part);
      return near.reduce((count, number, index) => {
        const u = part.left + (((index % 200) + 0.5) / 200) * part.width;
        const v = part.top + ((Math.floor(index / 200) + 0.5) / 150) * part.height;
        const [cat, sofa] = planes.map((plane) => probability(plane, grid, u, v));
        return count + (number !== (sofa > cat ? 2 : 1));
      }, 0);
    }""",
        {
            "left": (frame["x"] - photo["x"]) / photo["width"],
            "top": (frame["y"] - photo["y"]) / photo["height"],
            "width": frame["width"] / photo["width"],
            "height": frame["height"] / photo["height"],
        },
    )
    assert differing < 10  # rounding


def test_pinch(opened: Callable[..., "Page"], measured: Callable[..., Any]):
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box, before = measured(page, "#frame"), measured(page, "#photo")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *distances: float) -> None:
        points = [{"x": x + side * distance, "y": y, "id": side} for distance in distances for side in (-1, 1)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})  # type: ignore[arg-type]

    fingers("touchStart", 30)
    for distance in (35, 45, 60, 75, 90):
        fingers("touchMove", distance)
    fingers("touchEnd")
    measured(page, "#photo", width=3 * before["width"], near=0.5 * before["width"])


def test_a_held_finger_reads_the_labels(opened: Callable[..., "Page"], measured: Callable[..., Any]):
    from playwright.sync_api import expect

    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.evaluate("document.getElementById('background').click()")  # every point has a label
    photo = measured(page, "#photo")
    point = {"x": photo["x"] + photo["width"] / 2, "y": photo["y"] + photo["height"] / 2}
    touch = page.context.new_cdp_session(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    expect(page.locator("#probe")).to_be_visible()
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    box = measured(page, "#probe")
    assert box["y"] + box["height"] < point["y"] or box["x"] > point["x"] or box["x"] + box["width"] < point["x"]
    assert page.locator("#labels [aria-pressed=true]").count() == 0  # a long press is not a tap
    page.touchscreen.tap(**point)
    expect(page.locator("#probe")).to_be_hidden()
    expect(page.locator("#labels .name[aria-pressed=true]")).to_have_count(1)
    alone = page.get_by_role("button", name="Only cat")  # shown where the list is scrolled out of view
    expect(alone).to_be_visible()
    alone.tap()
    expect(alone).to_be_hidden()
    expect(page.locator("#labels .name[aria-pressed=true]")).to_have_count(0)


def test_history_restores_pictures_and_labels_without_queries(
    opened: Callable[..., "Page"], painted: Callable[..., str]
):
    from playwright.sync_api import expect

    page = opened("cat, sofa")
    hashes = painted(page)
    page.get_by_role("button", name="Remove sofa").click()
    page.locator("#file").set_input_files([SAMPLES / "coffee.jpg", SAMPLES / "astronaut.jpg"])
    expect(page.locator("#pictures li")).to_have_count(3)
    _settled(page, ["cat"])  # taken over from the previous picture
    page.get_by_label("What to find").fill("sofa")
    page.keyboard.press("Enter")
    _settled(page, ["cat", "sofa"])
    painted(page, unlike=[hashes])
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url) if request.url.startswith("http") else None)
    page.get_by_role("button", name="chelsea.jpg: cat", exact=True).click()
    _settled(page, ["cat"])
    expect(page.locator("#photo")).to_have_attribute("alt", "chelsea.jpg")
    page.get_by_role("button", name="astronaut.jpg: cat, sofa", exact=True).click()
    _settled(page, ["cat", "sofa"])
    assert requested == []


def test_every_one_of_several_files_gets_its_thumbnail(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    page = opened("cat")
    page.locator("#file").set_input_files([SAMPLES / name for name in ("coffee.jpg", "astronaut.jpg", "chelsea.jpg")])
    expect(page.locator("#pictures li")).to_have_count(4)
    for thumbnail in page.locator("#pictures canvas").all():
        expect(thumbnail).to_have_attribute("width", "144")
        colours = "it => new Set(it.getContext('2d').getImageData(0, 0, 144, 144).data).size"
        assert thumbnail.evaluate(colours) > 20


def test_a_picture_can_be_dropped_and_pasted(visit: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = visit(server.address)
    for way in ("drop", "paste"):
        page.evaluate(
            """async (way) => {
              const blob = await (await fetch("/static/samples/coffee.jpg")).blob();
              const carried = new DataTransfer();
              carried.items.add(new File([blob], `${way}.jpg`, { type: blob.type }));
              const send = (kind) => new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
              if (way === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried }));
              else for (const kind of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(send(kind));
            }""",
            way,
        )
        expect(page.locator("#pictures button").first).to_have_attribute("aria-label", f"{way}.jpg")
        expect(page.locator("#drop")).to_be_hidden()


def test_without_a_mouse(visit: Callable[..., "Page"], server: Any, painted: Callable[..., str]):
    from playwright.sync_api import expect

    page = visit(server.address)
    expect(page.locator("#samples button")).to_have_count(3)
    for _ in range(4):  # the help, the file button and the first two samples
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Chelsea")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("What to find")).to_be_focused()
    _settled(page, ["cat"])
    page.keyboard.type("sofa,wall,")
    _settled(page, ["cat", "sofa", "wall"])
    expect(page.locator("#live")).to_have_text(re.compile("wall"))

    hashes = painted(page)
    for name, key in (
        ("Add", ""),
        ("Colour of cat", ""),
        ("cat", "Enter"),
        ("Hide cat", "Space"),
        ("Remove cat", ""),
    ):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        expect(focused).to_have_accessible_name(name)
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        if key:
            page.keyboard.press(key)
            hashes = painted(page, unlike=[hashes])
    page.keyboard.press("Enter")
    _settled(page, ["sofa", "wall"])

    page.locator("#frame").focus()
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#live")).to_have_text(re.compile(r"^[\w ]+, \w+ [\d.]+ %, \w+ [\d.]+ %$"))
    expect(page.locator("#probe")).to_be_visible()
    threshold = page.get_by_label("Threshold")
    threshold.focus()
    page.keyboard.press("End")
    expect(page.locator("#live")).to_have_text("sofa not found, wall not found")
    page.keyboard.press("Home")
    expect(page.locator("#live")).to_have_text(re.compile(r"\d %"))


def test_a_phone_has_all_in_one_column_and_the_picture_in_view(
    opened: Callable[..., "Page"], measured: Callable[..., Any]
):
    page = opened(
        "cat, a label so long that it can never fit into one line",
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for part in page.locator("button:visible, input:not([role=switch]):visible, .switch").all():
        box = part.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert min(box["width"], box["height"]) >= 40, part.evaluate("it => it.outerHTML")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        red = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert red > 240 if scheme == "light" else red < 40
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("() => scrollY > 100")
    measured(page, ".stage", y=0)
    page.get_by_label("Colour of cat").focus()  # below the picture, not behind it
    assert page.evaluate("""document.activeElement.getBoundingClientRect().top >=
      document.querySelector(".stage").getBoundingClientRect().bottom""")
    page.set_viewport_size({"width": 844, "height": 390})  # landscape: two columns that fit
    measured(page, "body", height=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 844


def test_many_labels_scroll_by_themselves_found_first_and_the_rest_folded(opened: Callable[..., "Page"]):
    from playwright.sync_api import expect

    words = [f"thing {number}" for number in range(30)]
    page = opened("thing 0", viewport={"width": 1440, "height": 900})
    page.get_by_label("What to find").fill(", ".join(words[1:]))
    page.keyboard.press("Enter")
    expect(page.locator("#labels .fold")).to_contain_text("not found")
    page.wait_for_function("""() => [...document.querySelectorAll("#downloads button")].every(
      (button) => button.getBoundingClientRect().bottom <= 900)""")
    page.get_by_role("switch", name="Background").uncheck()
    rows, fold = page.locator("#labels li[data-word]"), page.locator("#labels .fold button")
    found = [word for word in words if word in page.evaluate(_FOUND)]
    assert 0 < len(found) < 30
    expect(rows.locator(".name")).to_have_text(found)
    expect(fold).to_have_text(f"{30 - len(found)} not found …")
    fold.click()
    expect(fold).to_be_focused()
    expect(rows.locator(".name")).to_have_text(found + [word for word in words if word not in found])
    assert page.locator("#labels").evaluate("it => it.scrollHeight > it.clientHeight")
    assert rows.first.evaluate("it => it.clientHeight") > 40
    rows.nth(29).get_by_role("button", name="Remove").click()
    expect(rows).to_have_count(29)


_FOUND = """async () => {
  const { session } = await import("/static/app.js");
  return [...session.current.shares].filter(([, share]) => share).map(([label]) => label.word);
}"""


def test_labels_survive_a_reload_after_confirmation(opened: Callable[..., "Page"]):
    page = opened("cat, sofa")
    requested = []

    def accept(dialog: Any) -> None:
        requested.append(dialog.type)
        dialog.accept()

    page.on("dialog", accept)
    page.reload()
    assert requested == ["beforeunload"]
    page.locator("#file").set_input_files(SAMPLES / "coffee.jpg")
    _settled(page, ["cat", "sofa"])


def test_files_are_named_as_their_programs_expect_and_hold_the_labels_shown(
    opened: Callable[..., "Page"], downloaded: Callable[..., Any]
):
    from playwright.sync_api import expect

    page = opened("cat, sofa")
    page.get_by_role("switch", name="Background").uncheck()
    for format, name in (("LabelMe", "chelsea.json"), ("YOLO", "chelsea.txt"), ("CVAT", "chelsea.cvat.xml")):
        assert downloaded(page, page.get_by_role("button", name=format, exact=True)).suggested_filename == name
    expect(page.locator("#classes")).to_have_text("Classes: 0 cat, 1 sofa. classes.txt")
    classes = downloaded(page, page.get_by_role("button", name="classes.txt"))
    assert Path(classes.path()).read_text() == "cat\nsofa\n"

    output = page.locator("#download-error")
    for word in ("cat", "sofa"):
        page.get_by_role("button", name=f"Hide {word}").click()
    page.get_by_role("button", name="Mask", exact=True).click()
    expect(output).to_have_text("No label is shown: show at least one to download its mask.")
    for word in ("cat", "sofa"):
        page.get_by_role("button", name=f"Remove {word}").click()
    expect(page.get_by_label("What to find")).to_be_focused()
    page.get_by_role("button", name="Cut-out", exact=True).click()
    expect(output).to_have_text("There are no labels yet: add one.")


def test_switches_show_their_state_in_forced_colours(opened: Callable[..., "Page"]):
    page = opened("cat", forced_colors="active")
    switch = page.get_by_role("switch", name="Outlines")
    on = np.asarray(Image.open(BytesIO(switch.screenshot(animations="disabled"))).convert("L"))
    switch.uncheck()
    off = np.asarray(Image.open(BytesIO(switch.screenshot(animations="disabled"))).convert("L"))
    assert on.std() > 20 < off.std()
    assert np.abs(on - off.astype(int)).mean() > 20


def test_samples_and_help_are_reached_from_everywhere(opened: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = opened("cat")
    page.get_by_role("button", name="Help").click()
    expect(page.get_by_role("dialog", name="Help")).to_contain_text(f"{server.address}/v1/segment")
    expect(page.locator("#version")).to_have_text(fusioner.__version__)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Samples").click()
    page.get_by_role("button", name="Espresso").click()
    expect(page.locator("#pictures li")).to_have_count(2)
    page.get_by_role("button", name="Samples").click()
    page.locator("#pictures button").last.click()
    expect(page.locator("#photo")).to_have_attribute("alt", "chelsea.jpg")


def test_colours_are_those_of_the_overlay(visit: Callable[..., "Page"], server: Any):
    from fusioner.visualization import colour

    page = visit(server.address)
    ours = page.evaluate("""async () => {
      const { channels, colour } = await import("/static/palette.js");
      return [...Array(40).keys()].map((index) => channels(colour(index)));
    }""")
    assert [tuple(rgb) for rgb in ours[:10]] == [colour(number) for number in range(1, 11)]
    assert len({tuple(rgb) for rgb in ours}) == 40


def test_labels_that_depend_on_each_other_are_all_requested(
    visit: Callable[..., "Page"], start_server: Callable[..., Any], make_tiny_segmenter: Callable[..., Any]
):
    joint_server = start_server(load=make_tiny_segmenter)
    assert not joint_server.http.get("/v1/models").json()["models"][0]["labels_independent"]
    page = visit(joint_server.address)
    requested: list[Any] = []
    page.on(
        "request",
        lambda request: requested.append(request.post_data_json) if request.url.endswith("/segment") else None,
    )
    page.locator("#file").set_input_files(SAMPLES / "chelsea.jpg")
    for word, labels in (("cat", ["cat"]), ("sofa", ["cat", "sofa"])):
        page.get_by_label("What to find").fill(word)
        page.keyboard.press("Enter")
        _settled(page, labels)
    page.get_by_role("button", name="Remove cat").click()
    _settled(page, ["sofa"])
    assert [question["labels"] for question in requested] == [["cat"], ["cat", "sofa"], ["sofa"]]


def _settled(page: "Page", labels: list[str]) -> None:
    """Wait until the list contains exactly these labels and each is decided."""
    from playwright.sync_api import expect

    expect(page.locator("#labels .name")).to_have_text(labels)
    expect(page.locator("#labels .share")).to_have_text([re.compile(r"%$|^not found$")] * len(labels))
    expect(page.locator("#working")).to_be_hidden()
