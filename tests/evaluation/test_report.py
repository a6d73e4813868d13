"""Files and tables of an evaluation."""

import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.evaluation.bootstrap import Estimate
from fusioner.evaluation.evaluate_report import class_table, markdown, terminal, write_report
from fusioner.evaluation.evaluator import EvaluationResult, evaluate
from fusioner.evaluation.predictor import FunctionPredictor
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.evaluation.report import MEASURES, Markup, Table, format_estimate

ORIGIN = {"command": "fusioner evaluate pascal --root '<here>' --fold 0", "model": {"sha256": "abc"}}


def half_right(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Predict the foreground of the left half of the picture."""
    found = rgb[..., 0] > 9
    found[:, found.shape[1] // 2 :] = False
    return np.stack([found for _ in labels]).astype(np.float32)


@pytest.fixture
def outcome(voc_data: SegmentationData) -> EvaluationResult:
    return evaluate(FunctionPredictor(half_right), voc_data, EvaluationOptions(folds=(0, 2), n_resamples=40))


class Tags(HTMLParser):
    """A parser that counts tags and checks that they are closed."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_metrics_json_has_every_measure_with_its_interval(outcome: EvaluationResult, tmp_path: Path):
    paths = write_report(tmp_path / "new" / "folder", outcome, ORIGIN)
    assert [path.name for path in paths] == ["metrics.json", "report.md", "report.html", "counts.npz"]
    content = json.loads(paths[0].read_text())
    assert content["protocol"] == "official"
    assert content["images"] == outcome.summary.images
    assert set(content["intervals"]) == set(MEASURES) - {"single_prompt_miou"}
    for name in content["intervals"]:
        low, high = content["intervals"][name]
        assert low <= content[name] <= high
    assert set(content["per_class"]) == {outcome.data.classes[i] for i in outcome.summary.per_class}
    assert content["command"] == ORIGIN["command"]
    assert content["missing"]["0"]["listed"] == 346
    matrix = content["confusion"]["fold 0 unseen"]
    assert matrix["labels"][0] == "background"
    assert len(matrix["rows_truth_columns_prediction"]) == 6


def test_the_html_report_is_self_contained(outcome: EvaluationResult, tmp_path: Path):
    write_report(tmp_path, outcome, ORIGIN)
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.count
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
    pictures = sum(len(fold.counts.best) + len(fold.counts.worst) for fold in outcome.folds.values())
    assert tags.count["img"] == pictures > 20
    assert page.count("class=track") == len(outcome.summary.per_class)
    assert "&#x27;&lt;here&gt;&#x27;" in page
    first = Image.open(io.BytesIO(base64.b64decode(tags.sources[0].split(",")[1])))
    first.load()
    assert first.height == 200


def test_the_worst_examples_come_first(outcome: EvaluationResult, tmp_path: Path):
    write_report(tmp_path, outcome, ORIGIN)
    page = (tmp_path / "report.html").read_text()
    worst = [int(v) for v in re.findall(r": IoU (\d+)", page.split("<h2>Worst")[1].split("<h2>")[0])]
    assert worst == sorted(worst)


def test_markdown_and_terminal_have_the_same_numbers(outcome: EvaluationResult):
    text = markdown(outcome, ORIGIN)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal(outcome))
    printed = console.export_text()
    for row in class_table(outcome).rows:
        assert row[0] in printed
        assert f"| {' | '.join(row)} |" in text
    for output in (
        "multi-class mIoU (argmax)",
        "prompt-ablated mIoU",
        "specificity",
        "fold 0",
        "listed pairs are not on disk",
    ):
        assert output in printed
        assert output in text


def test_measures_are_printed_with_intervals():
    assert format_estimate(Estimate(41.234, 38.0, 44.96)) == "41.2 [38.0, 45.0]"
    assert format_estimate(Estimate(float("nan"), float("nan"), float("nan"))) == "-"


def test_a_folder_that_is_a_file_is_one_sentence(outcome: EvaluationResult, tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(FusionerError, match="taken"):
        write_report(tmp_path / "taken", outcome, ORIGIN)


def test_one_table_in_three_forms():
    table = Table(["name", "a|b"], [["x<y", "1"], [Markup("<i>z</i>"), "2"]], "title", bold=[1], best=[(1, 1)])
    assert table.to_markdown() == "| name | a\\|b |\n| --- | --- |\n| x<y | 1 |\n| <i>z</i> | 2 |"
    html = table.to_html()
    assert "<td>x&lt;y</td><td class='n'>1</td>" in html
    assert "<td><i>z</i></td><td class='n best'>2</td>" in html
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table.to_rich())
    printed = console.export_text()
    assert "title" in printed
    assert "x<y" in printed
