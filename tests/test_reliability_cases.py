import keras
import pytest

from reliability import check_cases


@pytest.mark.parametrize("name", check_cases.names())
def test_case_says_what_is_right_and_where(name):
    case = check_cases.load(name)
    assert case.__doc__.rstrip().endswith(".")
    assert set(case.BACKENDS) <= {"tensorflow", "jax", "torch"}
    assert callable(case.check)


def test_wrong_value_is_told(monkeypatch, capsys, tmp_path):
    lines = ['"""One is two."""', f'BACKENDS = ("{keras.backend.backend()}",)']
    lines += ["def check():", "    assert 1 == 2"]
    (tmp_path / "arithmetic.py").write_text("\n".join(lines))
    monkeypatch.setattr(check_cases, "FOLDER", tmp_path)
    assert check_cases.main([]) == 1
    assert "WRONG arithmetic: One is two." in capsys.readouterr().out
