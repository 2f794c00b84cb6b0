"""The cards say what the records say, each of them all that a card has to, and nothing twice."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers.pipelines import SUPPORTED_TASKS

from eo_zoo import describe, terrasense, weights

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("update", ROOT / "model_cards" / "update.py")
update = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(update)
RECORDS = {**{n: r for n, r in weights.RECORDS.items() if r.source}, terrasense.RECORD.name: terrasense.RECORD}
every = pytest.mark.parametrize("name", RECORDS)


def read(name: str) -> str:
    return (ROOT / "model_cards" / f"{name}.md").read_text("utf-8")


def parts(name: str) -> tuple[str, str, str]:
    """Front matter, the block of facts, and what people wrote."""
    _, front, body = re.split(r"^---\n", read(name), maxsplit=2, flags=re.M)
    before, facts, after = re.split(f"^(?:{update.START}|{update.END})\n", body, flags=re.M)
    return front, facts, before + after


def test_every_tag_has_a_card_and_every_card_a_tag():
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} == {*RECORDS} == {*update.names()}
    assert not [name for name in RECORDS if name.endswith(weights.UNPUBLISHED)]


@every
def test_the_facts_are_those_of_now(name):
    assert read(name) == update.updated(name, read(name)), "run: python model_cards/update.py"


@every
def test_the_facts_hold_what_was_asked_for(name):
    _, facts, _ = parts(name)
    record = RECORDS[name]
    for text in (record.trained_on, record.citation, record.licence, record.sha256, record.md5, record.terms):
        assert text is None or text in facts
    assert "| band |" in facts and (not record.task or "**Classes**" in facts)


@every
def test_front_matter_is_what_the_hub_reads(name):
    front, _, _ = parts(name)
    data = ModelCard(read(name)).data
    assert yaml.safe_load(front) == data.to_dict() == describe.front_matter(name)
    assert data.pipeline_tag in SUPPORTED_TASKS and data.library_name in ("eo_zoo", "transformers")
    assert data.tags and all(isinstance(tag, str) for tag in data.tags) and len({*data.tags}) == len(data.tags)
    if data.license == "other":  # the Hub asks for a name and a place of what it does not know
        assert data.license_name and data.license_link.startswith("https://")
        assert not RECORDS[name].redistributable
    else:
        assert data.license in ("apache-2.0", "mit") and data.license == RECORDS[name].licence


@every
def test_sections(name):
    _, _, text = parts(name)
    title, *sections = re.split(r"^## ", text, flags=re.M)
    assert title.strip().startswith(f"# {name}\n")
    assert [section.partition("\n")[0] for section in sections] == [*update.SECTIONS]
    assert all(section.partition("\n")[2].strip() for section in sections)
    assert "check" in sections[2] or "claim" in sections[2], "results: was anything measured here?"


@every
def test_nothing_is_said_twice(name):
    _, _, text = parts(name)
    text, record = " ".join(text.split()), RECORDS[name]
    told = [record.trained_on, record.citation, record.md5, record.sha256]
    told += re.findall(r"[\w.-]+\.(?:pth|safetensors)\b", record.source)
    if record.task:
        told += ["; ".join(f"{i} {label}" for i, label in enumerate(record.task.classes))]
        told += [f"{record.task.result} %"] if record.task.result else []
    assert not [one for one in told if one and one in text.replace(f"`{name}`", "")]


@every
def test_numbers_that_people_wrote_are_those_of_the_record(name):
    _, facts, text = parts(name)
    record = RECORDS[name]
    assert {*re.findall(r"\b[0-9a-f]{32,}\b", text)} <= {record.md5, record.sha256}
    assert {*re.findall(r"(\d[\d,]{3,}) bytes", text)} <= {f"{record.size:,}" if record.size else ""}
    counted = re.findall(r"\*\*Parameters:\*\* ([\d,]+)", facts)
    millions = {f"{int(count.replace(',', '')) / 1e6:.0f} M" for count in counted}
    assert {*re.findall(r"\d[\d.]* [MB](?= parameters)", text)} <= (millions or {*re.findall(r"\d B", record.title)})
    for channels, size in re.findall(r"x: \(B, (\d+), (\d+), \d+\)", text):  # of a tuned set's example
        assert (int(channels), int(size)) == (len(record.bands), record.task.size)


@every
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)\s]+)\)", read(name))
    lost = [link for link in links if "://" not in link and not (ROOT / "model_cards" / link).exists()]
    assert not lost


@pytest.fixture
def card(tmp_path, monkeypatch):
    """One of two cards in a folder, which is old."""
    monkeypatch.setattr(update, "FOLDER", tmp_path)
    monkeypatch.setattr(update, "names", lambda: ["smarties_vit_nano.demo", "terrasense_base"])
    (tmp_path / "smarties_vit_nano.demo.md").write_text(read("smarties_vit_nano.demo"), "utf-8")
    path = tmp_path / "terrasense_base.md"
    path.write_text(
        read("terrasense_base").replace("license: other", "license: mit").replace("Qwen-VL\n", "BERT\n"), "utf-8"
    )
    return path


def test_the_script_tells_what_is_old_and_writes_it(card, capsys):
    old = card.read_text("utf-8")
    assert update.main(["--check"]) == 1 and capsys.readouterr().out.startswith("terrasense_base.md: differ")
    assert card.read_text("utf-8") == old
    assert update.main([]) == 0 and capsys.readouterr().out == "terrasense_base.md: written\n"
    assert card.read_text("utf-8") == read("terrasense_base")
    assert update.main(["--check"]) == 0 and not capsys.readouterr().out


def test_a_new_weight_set_gets_a_card_to_be_written(card):
    card.unlink()
    assert update.main(["--check"]) == 1 and not card.exists()
    assert update.main([]) == 0
    text = card.read_text("utf-8")
    assert "# terrasense_base\n" in text and "\n## Not for\n" in text and terrasense.RECORD.trained_on in text


def test_a_card_without_the_marks_is_told():
    with pytest.raises(ValueError, match=r"no block between <!-- facts --> and <!-- /facts -->"):
        update.updated("smarties_vit_nano.demo", "# smarties_vit_nano.demo\n")
