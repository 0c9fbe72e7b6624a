"""The report: its numbers are those of metrics.jsonl, data show as text, and it is there however a run ended."""

from __future__ import annotations

import fcntl
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import EVERY, HOSTILE, SOURCES, STEPS, metrics_of, write_run

from tunecli.config.errors import UserError
from tunecli.config.train import falls
from tunecli.report.charts import MAX_POINTS, draw, nice_step, smooth, thinned
from tunecli.report.numbers import difference, duration, in_words, large, shown, tick, unit_of
from tunecli.report.page import title_of, write_comparison, write_report
from tunecli.report.run_files import Curve

COUNTED = {"step", "tokens", "seconds", "seconds_per_step"}


class Page(HTMLParser):
    """Elements, attributes, text outside of scripts and styles, and the JSON island of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open = ""
        self.feed(self.source)
        island = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', self.source, re.S)
        assert island is not None
        self.charts: list[dict[str, Any]] = json.loads(island[1])["charts"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.text += data

    @property
    def lines(self) -> list[list[tuple[int, float]]]:
        """Steps and values of every line of every chart."""
        lines = [line for chart in self.charts for line in chart["lines"]]
        return [list(zip(line["steps"], line["values"], strict=True)) for line in lines]


def test_a_metric_of_a_family_is_no_source() -> None:
    assert title_of("eval/rewards/chosen") == "Rewards, chosen (validation)"
    assert title_of("eval/rewards/accuracies/movies") == "Rewards, accuracies of movies (validation)"
    assert title_of("eval/accuracy/movies") == "Accuracy of movies (validation)"
    assert falls("eval/logps/rejected") and not falls("eval/rewards/margins")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture
def page(run_dir: Path, tmp_path: Path) -> Page:
    return Page(write_report(run_dir, tmp_path / "report.html"))


def test_every_metric_is_drawn_with_the_numbers_of_metrics_jsonl(run_dir: Path, page: Page):
    expected = [points for name, points in metrics_of(run_dir).items() if name not in COUNTED]
    assert len(expected) == 2 * (1 + len(SOURCES)) + 4 + 3
    assert sorted(page.lines) == sorted(expected)


def test_what_is_drawn_stands_at_its_number_on_the_axes(page: Page):
    figures = re.findall(r'<figure.*? data-chart="(\d+)">(.*?)</figure>', page.source, re.S)
    assert len(figures) == len(page.charts)
    for index, figure in figures:
        chart = page.charts[int(index)]
        to_value = _axis(re.findall(r'<span style="top: ([\d.]+)%">(.*?)</span>', figure))
        to_step = _axis(re.findall(r'<span style="left: ([\d.]+)%">(.*?)</span>', figure))
        dots = re.findall(r'<path class="dots c\d[^"]*" d="(.*?)"', figure)
        if not dots:  # of what is not noisy, the line is the numbers
            dots = re.findall(r'<path class="line c\d" d="(.*?)"', figure)
        height, width = abs(to_value(0) - to_value(1000)), abs(to_step(0) - to_step(1000))
        for line, path in zip(chart["lines"], dots, strict=True):
            drawn = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) (-?[\d.]+)", path)]
            assert [to_step(x) for x, _ in drawn] == pytest.approx(line["steps"], abs=0.001 * width)
            assert [to_value(y) for _, y in drawn] == pytest.approx(line["values"], abs=0.001 * height)


def test_before_and_after(run_dir: Path, page: Page):
    rows = re.findall(r"<tr>(.*?)</tr>", page.source)
    cells = {_text(cells[0]): [_text(cell) for cell in cells[1:]] for cells in map(_cells, rows) if len(cells) == 5}
    for name in ("eval/loss", "eval/exact_match", f"eval/loss/{SOURCES[2]}"):
        points, unit = metrics_of(run_dir)[name], unit_of(name)
        best = (max if unit else min)(points, key=lambda point: point[1])
        first, last = points[0][1], points[-1][1]
        assert cells[name] == [
            f"{shown(first, unit)}step 0",
            f"{shown(last, unit)}step {STEPS}",
            f"{difference(last - first, unit)}better",
            f"{shown(best[1], unit)}step {best[0]}",
        ]
    assert "10.0% → 85.0%" in page.text and "on 100 held-out examples" in page.text


def test_data_show_as_text(run_dir: Path, page: Page, tmp_path: Path):
    write_comparison([run_dir, write_run(tmp_path / HOSTILE.replace("/", "|"), seed=2)], tmp_path / "comparison.html")
    for each in (page, Page(tmp_path / "comparison.html")):
        assert each.tags.count("script") == 2 and not {"b", "forum"} & set(re.findall(r"<(\w+)>forum", each.source))
        assert "\x1b" not in each.source and "\u202e" not in each.source
        assert "<b>forum</b>" in each.text and "\\x1b[31mred\\x1b[0m\\u202egnp" in each.text
    assert page.text.count(HOSTILE.partition("\x1b")[0]) > STEPS // EVERY
    assert "用一句话介绍北京。" in page.text and "北京是中国的首都 🏯🎉。" in page.text


def test_nothing_is_loaded_from_elsewhere(page: Page):
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in page.attributes}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page.source)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'") in page.attributes


def test_first_and_last_answers_are_open_and_those_between_folded(page: Page):
    answer = re.compile(r'<div class="answer.*?<h3>step (\d+)')
    sample = page.source[page.source.index('<section class="card sample">') : page.source.index("</section>")]
    shown_at_once, folded = sample.split("<details>")
    assert answer.findall(shown_at_once) == ["0", str(STEPS)]
    assert answer.findall(folded) == [str(step) for step in range(EVERY, STEPS, EVERY)]
    assert shown_at_once.count("not as expected") == 1 and shown_at_once.count(">as expected") == 1


def test_configuration_says_what_set_each_value(run_dir: Path, page: Page, tmp_path: Path):
    settings = {_text(cells[0]): [_text(cell) for cell in cells[1:]] for cells in _rows(page) if len(cells) in (2, 3)}
    assert settings["peft.lora.r"] == ["16", "command line"]
    assert settings["train.learning_rate"] == ["0.0003", "recipes/sft_lora_smollm2.yaml:14"]
    assert settings["train.max_steps"] == ["200", "command line of tune resume"]
    assert settings["model.quantization"] == ["none"] and "values by default (1)" in page.text
    bare = Path(shutil.copytree(run_dir, tmp_path / "bare"))
    (bare / "origins.json").unlink()
    settings = {_text(cells[0]): [_text(cell) for cell in cells[1:]] for cells in _rows(Page(write_report(bare)))}
    assert settings["peft.lora.r"] == ["16"] and settings["model.quantization"] == ["none"]


def test_events_data_and_environment(page: Page):
    rows = [[_text(cell) for cell in cells] for cells in _rows(page)]
    assert ["step 120", "stopped after step 120 of 200, checkpoint saved"] in rows
    assert ["step 120", "resumes after step 120"] in rows
    assert ["trained tokens", "345,678", "345,678"] in rows and ["torch", "2.13.0"] in rows
    assert ["rows, both together", "12,345", ""] in rows and ["examples", "11,700", "617"] in rows
    assert ["left out: bad, both together", "9", ""] in rows
    assert "Left out: bad (9)" in page.text and "and 4 more, in left_out.jsonl" in page.text


def test_a_run_that_goes_on_or_was_killed_has_a_report(tmp_path: Path):
    run_dir = write_run(tmp_path / "run")
    whole = metrics_of(run_dir)
    for name in ("metrics.jsonl", "samples.jsonl", "answers.jsonl"):
        text = (run_dir / name).read_text(encoding="utf-8")
        (run_dir / name).write_text(text[: -len(text.splitlines()[-1]) // 2], encoding="utf-8")
    (run_dir / "status.json").write_text('{"state": "running"}')
    page = Page(write_report(run_dir))
    assert "was killed" in page.text
    assert whole["eval/loss"][:-1] in page.lines and whole["loss"] in page.lines
    with (run_dir / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "goes on" in Page(write_report(run_dir)).text
    (run_dir / "status.json").write_text('{"state": "interrupted"}')
    assert "was interrupted" in Page(write_report(run_dir)).text
    assert [path.name for path in run_dir.iterdir() if "partial" in path.name] == []


def test_a_run_that_has_only_its_configuration_has_a_report(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("recipe: x\nmodel: {path: m}\ndata: {path: d}\nstage: {name: sft}\n")
    page = Page(write_report(tmp_path))
    assert page.charts == [] and "has not trained yet" in page.text and "sft of m with full fine-tuning" in page.text


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path: Path):
    run_dir = write_run(tmp_path / "run")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 201, "loss": NaN, "grad_norm": Infinity, "odd": "text"}\n{"step": 202, "loss": 1.5}\n')
    page = Page(write_report(run_dir))
    assert [*metrics_of(run_dir)["loss"][:STEPS], (202, 1.5)] in page.lines
    assert "NaN" not in page.source and "Infinity" not in page.source


def test_of_many_points_the_extremes_are_drawn(tmp_path: Path):
    run_dir = write_run(tmp_path / "run")
    losses = [2.0 + (i % 7) / 10 for i in range(20_000)]
    losses[12_345], losses[77] = 9.5, 0.25
    lines = [json.dumps({"step": i + 1, "loss": loss}) + "\n" for i, loss in enumerate(losses)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    (drawn,) = Page(write_report(run_dir)).lines
    assert len(drawn) <= MAX_POINTS and {(12_346, 9.5), (78, 0.25), (1, 2.0), (20_000, losses[-1])} <= set(drawn)
    assert all(losses[step - 1] == value for step, value in drawn)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_axis_of_a_share_ends_at_0_and_1(share: float):
    chart = draw("eval/exact_match", "", [("", 0, Curve([0, 5], [share, share]))])
    numbers = [float(tick.label.removesuffix("%")) for tick in chart.y_ticks]
    assert 0 <= min(numbers) <= max(numbers) <= 100 and all(0 <= tick.at <= 100 for tick in chart.y_ticks)
    assert {float(top) for top in re.findall(r" ([\d.]+)h0", chart.lines[0].dots)} <= {0.0, 500.0, 1000.0}


def test_thinning_keeps_what_is_few_and_order():
    assert thinned([1.0, 2.0, 1.0]) == [0, 1, 2]
    kept = thinned([float(i * 7919 % 1000) for i in range(5 * MAX_POINTS)])
    assert kept == sorted(set(kept)) and MAX_POINTS // 2 < len(kept) <= MAX_POINTS


def test_a_smooth_line_keeps_straight_lines_and_calms_noise():
    straight = [3.0 - 0.01 * i for i in range(300)]
    assert smooth(straight)[12:-12] == pytest.approx(straight[12:-12])
    assert smooth(straight) == pytest.approx(straight, abs=0.02)  # two steps
    jagged = smooth([(-1.0) ** i for i in range(300)])
    assert max(map(abs, jagged[10:-10])) < 0.1


def test_steps_of_the_axes_are_round():
    for width in (1e-9, 0.003, 0.7, 1, 9, 12_345):
        step = nice_step(width, 4)
        assert 1 <= width / step <= 4.1
        assert any(f"{factor}e" in f"{step:.1e}" for factor in ("1.0", "2.0", "2.5", "5.0"))


def test_numbers_read_well():
    values = [5.58201, 0.4574, 12451.5, 3e-4, 0.0, -0.2331]
    assert [shown(value) for value in values] == ["5.582", "0.4574", "12,452", "3.00e-4", "0", "-0.2331"]
    assert shown(516_780_032, "bytes") == "0.52 GB" and shown(0.8999, "share") == "90.0%"
    assert [difference(0.5, "share"), difference(-0.2331), difference(0.0)] == ["+50.0 points", "−0.2331", "0"]
    assert [duration(1.84), duration(42), duration(360), duration(7260)] == [
        "1.8 s",
        "42 s",
        "6 min 0 s",
        "2 h 1 min",
    ]
    assert [large(2917), large(420_000), large(12_345_678)] == ["2,917", "420k", "12.3M"]
    assert [tick(1e-4, 1e-4, ""), tick(2500, 2500, ""), tick(0.5, 0.25, ""), tick(0.75, 0.25, "share")] == [
        *("1e-4", "2.5k", "0.50", "75%"),
    ]
    assert in_words([{"path": "a", "weight": 2}, {"path": "b"}]) == "path a, weight 2; path b"


def test_the_page_needs_nothing_heavy(run_dir: Path, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tunecli.report.page import write_report\n"
        f"write_report(Path({str(run_dir)!r}), Path({str(tmp_path / 'page.html')!r}))\n"
        "print({'torch', 'transformers', 'datasets', 'hydra'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_several_runs_on_one_page(run_dir: Path, tmp_path: Path):
    other = write_run(tmp_path / "b", seed=2, r=64, floor=0.9)
    write_comparison([run_dir, other], tmp_path / "comparison.html")
    page = Page(tmp_path / "comparison.html")
    validation = next(chart for chart in page.charts if chart["title"] == "Loss (validation)")
    assert [line["label"] for line in validation["lines"]] == ["a", "b"]
    assert page.lines[:2] == [metrics_of(run_dir)["eval/loss"], metrics_of(other)["eval/loss"]]
    rows = [[_text(cell) for cell in cells] for cells in _rows(page)]
    assert ["peft.lora.r", "16", "64"] in rows and ["seed", "1", "2"] in rows
    assert "train.learning_rate" not in page.text and "versions: all 7 are the same" in page.text
    last, best = metrics_of(other)["eval/loss"][-1][1], min(value for _, value in metrics_of(other)["eval/loss"])
    assert f'<span class="good">{shown(last)}</span><span class="at">best {shown(best)}</span>' in page.source


def test_paths_are_short_and_the_question_stands_alone(run_dir: Path, tmp_path: Path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("HuggingFaceTB/SmolLM2", "/home/me/models/SmolLM2")
    (run / "config.yaml").write_text(config)
    prompt = "<|im_start|>system\nBe <brief><|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    (run / "samples.jsonl").write_text(json.dumps({"step": 0, "prompt": prompt, "answer": "So."}))
    page = Page(write_report(run, tmp_path / "page.html"))
    assert "sft of models/SmolLM2-135M-Instruct with lora" in page.text
    assert '<pre class="prompt">Why?</pre>' in page.source
    whole = re.search(r"<details[^>]*><summary>as the model sees it</summary><pre>(.*?)</pre>", page.source, re.S)
    assert whole is not None and html.unescape(whole[1]) == prompt
    assert page.source.count('<div class="unit">step</div>') == len(page.charts)


def test_mistakes_are_said(run_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="is not a run directory"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_report(run_dir, tmp_path / "missing" / "report.html")
    with pytest.raises(UserError, match="named twice"):
        write_comparison([run_dir, run_dir], tmp_path / "comparison.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here to show the page in")
@pytest.mark.parametrize("several", [False, True], ids=["report", "comparison"])
def test_in_a_browser_every_chart_tells_the_numbers_under_the_pointer(run_dir: Path, tmp_path: Path, several: bool):
    path = tmp_path / "page.html"
    if several:
        write_comparison([run_dir, write_run(tmp_path / "b", seed=2)], path)
    else:
        write_report(run_dir, path)
    page = Page(path)
    point = """<script>
      for (const plot of document.querySelectorAll(".plot")) {
        const box = plot.getBoundingClientRect();
        const event = {clientX: box.left + 0.5 * box.width, clientY: box.top + 9};
        plot.dispatchEvent(new PointerEvent("pointermove", event));
      }
    </script>"""
    path.write_text(page.source.replace("</body>", point + "</body>"), encoding="utf-8")
    dom, said = _in_browser(path, tmp_path / "profile")
    assert "CONSOLE" not in said
    figures = re.findall(r"<figure.*?</figure>", dom, re.S)
    assert len(figures) == len(page.charts) > 8
    for chart, figure in zip(page.charts, figures, strict=True):
        assert '<span class="dim at">step 100</span>' in figure
        at_100 = [dict(zip(line["steps"], line["values"], strict=True))[100] for line in chart["lines"]]
        assert re.findall(r"<output>(.*?)</output>", figure) == [shown(value, chart["unit"]) for value in at_100]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here to show the page in")
def test_what_a_browser_complains_about_is_seen(tmp_path: Path):
    (tmp_path / "page.html").write_text("<body><script>missing()</script></body>")
    assert "CONSOLE" in _in_browser(tmp_path / "page.html", tmp_path / "profile")[1]


def _in_browser(path: Path, profile: Path) -> tuple[str, str]:
    """The elements after the scripts have run, and what the browser said."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    command = ["chromium", *options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def _axis(ticks: list[tuple[str, str]]):
    """From a place in the box of 1000 by 1000 to the number that the ticks put there."""
    places, labels = [10 * float(at) for at, _ in ticks], [_number(label) for _, label in ticks]
    assert len(set(labels)) == len(labels) > 1
    slope = (labels[-1] - labels[0]) / (places[-1] - places[0])
    return lambda at: labels[0] + (at - places[0]) * slope


def _number(label: str) -> float:
    for ending, factor in ((" GB", 1e9), ("%", 0.01), ("k", 1e3)):
        if label.endswith(ending):
            return float(label.removesuffix(ending)) * factor
    return float(label)


def _rows(page: Page) -> list[list[str]]:
    return [cells for cells in map(_cells, re.findall(r"<tr>(.*?)</tr>", page.source, re.S)) if cells]


def _cells(row: str) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)


def _text(cell: str) -> str:
    return html.unescape(re.sub(r"</?\w+[^>]*>", "", cell)).strip()
