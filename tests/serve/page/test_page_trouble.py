"""Errors on the page, and recovery from them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


def test_files_that_are_no_pictures_are_refused_in_a_sentence(
    visit: Callable[..., "Page"], server: Any, tmp_path: Path
):
    from playwright.sync_api import expect

    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes((SAMPLES / "chelsea.jpg").read_bytes()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    page = visit(server.address)
    output = page.get_by_role("alert").filter(has_text=re.compile("."))
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    expect(output).to_have_text("notes.txt is not a picture.")
    page.locator("#file").set_input_files(tmp_path / "broken.jpg")
    expect(output).to_have_text(re.compile(r"^broken\.jpg: [^{}]+\.$"))
    expect(page.get_by_role("heading", name="Name things in words")).to_be_visible()

    page.locator("#file").set_input_files(SAMPLES / "chelsea.jpg")  # a valid file
    expect(page.locator("#pictures li")).to_have_count(1)
    expect(output).to_have_count(0)
    page.locator("#file").set_input_files(tmp_path / "empty.png")
    expect(output).to_have_text(re.compile(r"^empty\.png: [^{}]+\.$"))
    expect(page.locator("#photo")).to_have_attribute("alt", "chelsea.jpg")  # the valid picture remains
    expect(page.locator("#pictures li")).to_have_count(1)


def test_a_picture_that_the_browser_cannot_show_is_segmented(
    visit: Callable[..., "Page"], server: Any, tmp_path: Path, downloaded: Callable[..., Any]
):
    from PIL import Image
    from playwright.sync_api import expect

    with Image.open(SAMPLES / "chelsea.jpg") as photograph:
        photograph.save(tmp_path / "scan.tiff")
    page = visit(server.address)
    server.gate.clear()
    page.locator("#file").set_input_files(tmp_path / "scan.tiff")
    expect(page.locator("#working")).to_have_text("Reading the picture")
    server.gate.set()
    expect(page.locator("#picture-error")).to_contain_text("This browser cannot show scan.tiff")
    page.get_by_label("What to find").fill("cat,")
    expect(page.locator("#labels .share")).to_have_text(re.compile("%|found"))
    with Image.open(downloaded(page, page.get_by_role("button", name="As seen")).path()) as seen:
        assert seen.size == (451, 300)


def test_late_results_preserve_view_and_focus(visit: Callable[..., "Page"], server: Any, tmp_path: Path):
    from playwright.sync_api import expect

    scans = (SAMPLES / "chelsea.jpg").read_bytes() + b"\xff\xda" * 101  # valid for the browser only
    for name in ("first.jpg", "second.jpg"):
        (tmp_path / name).write_bytes(scans)
    page = visit(server.address)
    output, photo = page.locator("#picture-error"), page.locator("#photo")
    for name in ("first.jpg", "second.jpg"):
        page.locator("#file").set_input_files(tmp_path / name)
        expect(output).to_contain_text(f"{name}: the JPEG has more than 100 scans")
        expect(page.get_by_role("heading", name="Name things in words")).to_be_visible()

    page.locator("#file").set_input_files(SAMPLES / "chelsea.jpg")
    expect(page.locator("#pictures li")).to_have_count(1)
    server.gate.clear()
    page.locator("#file").set_input_files([SAMPLES / "coffee.jpg", SAMPLES / "astronaut.jpg"])
    expect(photo).to_have_attribute("alt", "coffee.jpg")
    page.get_by_role("button", name="chelsea.jpg").click()
    expect(photo).to_have_attribute("alt", "chelsea.jpg")
    page.get_by_label("Threshold").focus()
    server.gate.set()
    expect(page.locator("#pictures li")).to_have_count(3)
    for thumbnail in page.locator("#pictures canvas").all():
        expect(thumbnail).to_have_attribute("width", "144")
    expect(photo).to_have_attribute("alt", "chelsea.jpg")
    expect(page.get_by_label("Threshold")).to_be_focused()


def test_samples_stay_when_a_picture_opened_there_is_refused_and_back_leads_to_the_one_before(
    visit: Callable[..., "Page"], server: Any, tmp_path: Path
):
    from playwright.sync_api import expect

    (tmp_path / "scans.jpg").write_bytes((SAMPLES / "chelsea.jpg").read_bytes() + b"\xff\xda" * 101)
    page = visit(server.address)
    samples, photo = page.get_by_role("heading", name="Name things in words"), page.locator("#photo")
    page.get_by_role("button", name="Chelsea").click()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")])
    page.get_by_role("button", name="Samples").click()
    expect(page.get_by_role("button", name="Eileen Collins")).to_be_focused()
    page.locator("#file").set_input_files(tmp_path / "scans.jpg")
    expect(page.locator("#picture-error")).to_contain_text("scans.jpg: the JPEG has more than 100 scans")
    expect(samples).to_be_visible()
    page.go_back()  # from the samples
    page.go_back()
    expect(samples).to_be_hidden()
    expect(photo).to_have_attribute("alt", "chelsea.jpg")
    expect(page.locator("#picture-error")).to_be_hidden()
    page.go_forward()
    expect(samples).to_be_visible()

    page.get_by_role("button", name="chelsea.jpg").click()
    server.gate.clear()
    page.locator("#file").set_input_files([SAMPLES / "coffee.jpg", SAMPLES / "astronaut.jpg"])
    expect(photo).to_have_attribute("alt", "coffee.jpg")
    page.get_by_role("switch", name="Background").uncheck()  # masks cover the whole picture
    page.get_by_role("button", name="Samples").click()  # pending pictures must not close the samples
    server.gate.set()
    expect(page.locator("#pictures li")).to_have_count(3)
    for thumbnail in page.locator("#pictures canvas").all():
        expect(thumbnail).to_have_attribute("width", "144")
    page.wait_for_function("""() => [...document.querySelectorAll("#pictures canvas")].slice(0, 2).every((canvas) => {
      const copy = new OffscreenCanvas(144, 144).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      const { data } = copy.getImageData(0, 0, 144, 144);
      return data.reduce((sum, value, index) => sum + (index % 4 === 2 ? value : 0), 0) / 144 ** 2 > 0.45 * 238;
    })""")
    expect(samples).to_be_visible()


def test_a_dropped_link_is_refused_with_a_reason(visit: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = visit(server.address)
    page.evaluate("""() => {
      const carried = new DataTransfer();
      carried.setData("text/uri-list", "https://example.org/cat.jpg");
      const send = (kind) => new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
      for (const kind of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(send(kind));
    }""")
    expect(page.get_by_role("alert").filter(has_text="That was a link")).to_contain_text("save the picture")


def test_every_wait_is_named_and_the_bar_stays_while_the_picture_is_read(visit: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = visit(server.address)
    requests: list[Any] = []
    page.route("**/segment", lambda route: requests.append(route))
    server.gate.clear()
    page.locator("#file").set_input_files(SAMPLES / "chelsea.jpg")
    page.get_by_label("What to find").fill("cat, sofa,")
    working = page.locator("#working")
    expect(page.locator("#labels .name")).to_have_text(["cat", "sofa"])
    expect(working).to_have_text("Reading the picture")
    expect(page.locator("#reading")).to_be_visible()
    with page.expect_request("**/segment"):
        server.gate.set()
    expect(working).to_have_text("Looking for cat, sofa")
    expect(page.locator("#reading")).to_be_hidden()
    requests[0].continue_()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")] * 2)
    expect(working).to_be_hidden()


def test_too_large_a_file(visit: Callable[..., "Page"], server: Any, tmp_path: Path):
    from playwright.sync_api import expect

    from fusioner.serve.limits import Limits

    with (tmp_path / "huge.jpg").open("wb") as huge:
        huge.truncate(Limits().max_body_bytes + 10**6)
    page = visit(server.address)
    page.locator("#file").set_input_files(tmp_path / "huge.jpg")
    expect(page.get_by_role("alert").filter(has_text="huge.jpg")).to_contain_text("over this server's limit")


def test_a_request_to_a_busy_server_is_repeated(
    visit: Callable[..., "Page"], server: Any, monkeypatch: pytest.MonkeyPatch
):
    from playwright.sync_api import expect

    page = visit(server.address)
    expect(page.locator("#samples button")).to_have_count(3)
    with monkeypatch.context() as full:
        full.setattr(server.service.concurrency, "limits", replace(server.service.limits, max_requests=0))
        page.get_by_role("button", name="Chelsea").click()
        expect(page.locator("#working")).to_contain_text(re.compile(r"The server is busy; trying again in \d+ s"))
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")])
    expect(page.locator("#working")).to_be_hidden()


def test_an_evicted_picture_is_uploaded_again(visit: Callable[..., "Page"], server: Any):
    from playwright.sync_api import expect

    page = visit(server.address)
    ids: list[str] = []
    page.on("response", lambda answer: ids.append(answer.json()["id"]) if answer.url.endswith("/v1/images") else None)
    page.get_by_role("button", name="Chelsea").click()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")])
    server.http.delete(f"/v1/images/{ids[0]}").raise_for_status()
    page.get_by_label("What to find").fill("ear,")
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")] * 2)
    assert len(ids) == 2
    expect(page.locator("#words-error")).to_be_hidden()


def test_a_server_that_is_gone_can_be_tried_again(visit: Callable[..., "Page"], start_server: Callable[..., Any]):
    from playwright.sync_api import expect

    running = start_server()
    page = visit(running.address)
    page.get_by_role("button", name="Chelsea").click()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")])
    page.context.set_offline(True)
    page.get_by_label("What to find").fill("ear,")
    expect(page.locator("#words-error")).to_contain_text("The server does not answer")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")] * 2)
    expect(page.locator("#words-error")).to_be_hidden()


def test_a_field_for_the_key_replaces_the_result(visit: Callable[..., "Page"], start_server: Callable[..., Any]):
    from playwright.sync_api import expect

    page = visit(start_server(key="open sesame").address, viewport={"width": 390, "height": 844})
    expect(page.locator("#key-form")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for key in ("wrong", "open sesame"):
        page.get_by_label("This server requires an API key").fill(key)
        page.get_by_role("button", name="Continue").click()
        if key == "wrong":
            expect(page.locator("#key-error")).to_have_text("The server does not accept this key.")
    expect(page.locator("#key-form")).to_be_hidden()
    page.get_by_role("button", name="Chelsea").click()
    expect(page.locator("#labels .share")).to_have_text([re.compile("%|found")])


def test_no_download_of_many_at_once_is_dropped(visit: Callable[..., "Page"], server: Any):
    page = visit(server.address)
    names: list[str] = []
    page.on("download", lambda download: names.append(download.suggested_filename))
    with page.expect_download(lambda _: len(names) == 14):
        page.evaluate("""async () => {
          const { createDownloads } = await import("/static/downloads.js");
          const home = document.createElement("div");
          const formats = Object.fromEntries([...Array(14).keys()].map((index) => [`f${index}`, ""]));
          const make = async (format) => ({ blob: new Blob(["x"]), name: `${format}.txt` });
          createDownloads(home, formats, make, () => {});
          for (const button of home.children) button.click();
        }""")
    assert sorted(names) == sorted(f"f{index}.txt" for index in range(14))
