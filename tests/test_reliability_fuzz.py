import pytest
from tensors import only_once

from reliability import fuzz

pytestmark = [pytest.mark.slow, only_once]


def test_losses_hold_on_random_cases():
    record = fuzz.main(["--examples", "30"])
    assert record.failures == []
    assert record.tried >= 30
    assert all(record.details[each.__name__] > 0 for each in fuzz.PROPERTIES)


@pytest.mark.parametrize("name", ["value", "gradient"])
def test_wrong_loss_is_noticed(monkeypatch, name):
    right = fuzz.fuzz_cases.entropy_of
    monkeypatch.setattr(fuzz.fuzz_cases, "entropy_of", lambda *a: 1.001 * right(*a))
    monkeypatch.setattr(fuzz, "SHRINKS", False)
    record = fuzz.main(["--examples", "100", "--only", name])
    assert name in record.failures[0]
    assert "scale=" in record.failures[0]
