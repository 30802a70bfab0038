"""The page: complete, self-contained, escaped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.runs import RunFolder, write_page

MakeRun = Callable[..., Path]
HOSTILE = '<script>alert("1")</script>&\'"><img src=x onerror=y>'
VOID = {"meta"}


class Outline(HTMLParser):
    """Tags with their attributes, the text outside of the style sheet, and whether tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + "\n"


def page_of(tmp_path: Path, *runs: Path, **more: str) -> Outline:
    return Outline(write_page(tmp_path / "index.html", runs, **more).read_text(encoding="utf-8"))


def test_the_page_of_one_run_holds_its_numbers_facts_and_recipe(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run("lone", top1=(41.375, 80.625), settings={"temperature": 4.0}))
    for part in ("80.62", "41.38", "98.88%", "78,042", "272,474", "12,400,000", "0123456789ab", "ab12"):
        assert part in page.text
    for part in ("few ratio", "cpu (x86_64)", "torch 2.11.0", "temperature: 4.0", "float32", "1,234"):
        assert part in page.text
    assert "tutelage distill --recipe lone/recipe.yaml" in page.text
    assert [tag for tag, _ in page.tags].count("figure") == 3


def test_the_page_of_several_runs_compares_them(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"{m}-{s}", method=m, seed=s) for m in ("none", "kd") for s in (0, 1)]
    page = page_of(tmp_path, *runs, title="All of them", note="What it means.")
    for part in ("All of them", "What it means.", "80.00 ± 0.00", "kd-1: kd, seed 1, 80.00%", "on test)"):
        assert part in page.text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(charts) == 1 + 3 * 4
    assert "none: from 40 to 80" in charts[0] and "kd: from 40 to 80" in charts[0]


def test_nothing_is_fetched_and_nothing_can_run(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run("a"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "onload", "onerror"} & attributes.keys()
    style = re.search("<style>(.*?)</style>", (tmp_path / "index.html").read_text(), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_names_stay_text(make_run: MakeRun, tmp_path: Path) -> None:
    harmless = page_of(tmp_path, make_run("a"), title="t", note="n")
    run = make_run(
        "b",
        student=HOSTILE,
        settings={HOSTILE: HOSTILE},
        protocol={HOSTILE: HOSTILE},
        facts={"versions": {HOSTILE: HOSTILE}, "hardware": {"device": HOSTILE}, "created": HOSTILE},
    )
    folder = RunFolder.open(run)
    lines = folder.metrics()
    for line in lines:
        line["phase"] = HOSTILE
        line["train"]["terms"][HOSTILE] = 1.0
    folder.keep_metrics(0)
    for line in lines:
        folder.append(line)
    page = page_of(tmp_path, run, title=HOSTILE, note=HOSTILE)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in harmless.tags}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 9


def test_a_half_written_line_is_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", top1=(11.0, 22.0), facts={"status": "running", "summary": None})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"phase": "distil", "epoch": 2, "train": {"loss": 0.12')
    page = page_of(tmp_path, run)
    assert "22.00" in page.text and "a: kd, seed 0, running" in page.text
    label = next(attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img")
    assert "over 2 epochs" in label and "test: from 11 to 22" in label


def test_a_run_without_an_epoch_still_has_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", facts={"status": "interrupted", "reason": "stopped", "summary": None})
    RunFolder.open(run).keep_metrics(0)
    page = page_of(tmp_path, run)
    assert "stopped" in page.text and "figure" not in {tag for tag, _ in page.tags}


def test_what_tables_refuse_pages_refuse(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="few_ratio"):
        page_of(tmp_path, make_run("a"), make_run("b", seed=1, protocol={"few_ratio": 1.0}))
    with pytest.raises(UserError, match="no run to make"):
        page_of(tmp_path)
    with pytest.raises(UserError, match="not finished"):
        page_of(tmp_path, make_run("c"), make_run("d", seed=1, facts={"status": "running"}))
    assert not (tmp_path / "index.html").exists()


def test_a_damaged_record_is_refused_in_a_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    (run / "metrics.jsonl").write_text('{"epoch": 0}\n')
    with pytest.raises(UserError, match="is damaged"):
        page_of(tmp_path, run)


def test_numbers_are_in_tables_with_headings(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run("a"))
    names = [tag for tag, _ in page.tags]
    assert names.count("caption") == names.count("table") == 3
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for t, a in page.tags if t == "meta")


def test_a_long_run_is_written_quickly(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", top1=tuple(50 + 40 * i / 300 for i in range(300)))
    began = time.process_time()
    write_page(tmp_path / "index.html", [run])
    assert time.process_time() - began < 1
