"""The page on reliability and the recorded runs."""

import json

from reliability import table


def test_page_shows_the_recorded_runs():
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run `python reliability/table.py --write`"


def test_rows_say_what_failed(tmp_path, monkeypatch):
    result = {"what": "kills", "claim": "none", "tried": 2000, "failed": 3}
    result["command"] = "python reliability/kills.py --kills 2000"
    result["environment"] = {"backend": "jax", "jax": "1", "keras": "3", "python": "3"}
    (tmp_path / "kills.json").write_text(json.dumps(result))
    (tmp_path / "mended.json").write_text(json.dumps({"kills": ["one", "two"]}))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    row = table.table().splitlines()[-1]
    for part in ("kills (JAX 1, Keras 3, Python 3)", "| 2,000 | 3 |", "one; two"):
        assert part in row


def test_failed_runs_are_not_hidden():
    paths = set(table.RESULTS.glob("*.json")) - {table.RESULTS / "mended.json"}
    results = [json.loads(path.read_text()) for path in paths]
    assert all(len(r["failures"]) == min(r["failed"], 20) for r in results)
