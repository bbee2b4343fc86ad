import json

import numpy as np
import pytest
from tensors import only_once

from reliability import determinism


def test_bits_are_compared_and_not_values():
    assert determinism.equal([np.nan], [np.nan])
    assert not determinism.equal([0.0], [-0.0])
    assert not determinism.equal(np.zeros(2, "float32"), np.zeros(2, "float64"))
    assert not determinism.equal(np.zeros((1, 2)), np.zeros((2, 1)))


def test_what_differs_is_told_by_case():
    first = {"a: x": np.zeros(2), "a: y": np.ones(2), "b: x": np.zeros(2)}
    second = {"a: x": np.zeros(2), "a: y": np.zeros(2), "c: x": np.zeros(2)}
    found = determinism.differences(first, second)
    assert found == {"a": ["y"], "b": ["x"], "c": ["x"]}


@only_once
@pytest.mark.slow
@pytest.mark.parametrize("only", ["sampled, float32, unfrozen", "generate_pedcc, m"])
def test_two_processes_agree_bit_for_bit(tmp_path, only):
    path = tmp_path / "result.json"
    assert (
        determinism.main(["--only", only, "--promised-only", f"--result={path}"]) == 0
    )
    result = json.loads(path.read_text())
    assert result["tried"] == 1
    assert result["details"]["deterministic mode"]["arrays"] > 0
