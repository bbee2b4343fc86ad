import types

import numpy as np
import pytest
import sampled_classes

pytestmark = pytest.mark.slow


def test_pairs_show_the_characters_of_their_class(rng):
    # The image of a character is its number, and another digit for each writer.
    y = np.repeat(np.arange(47), 3)
    x = np.tile((10 * y + np.arange(141) % 3)[:, None, None, None], (1, 2, 2, 1))
    images, labels = sampled_classes.pairs(x, y, 2, rng)
    assert images.shape == (2 * 47**2, 2, 4, 1)
    assert np.bincount(labels).tolist() == [2] * 47**2
    shown = images[:, 0, [0, 3], 0] // 10
    assert (47 * shown[:, 0] + shown[:, 1] == labels).all()
    assert len(np.unique(images % 10)) == 3


def test_rates_are_compared_seed_by_seed():
    accuracies = {(1.0, 0): 0.5, (1.0, 1): 0.7, (0.1, 0): 0.4, (0.1, 1): 0.5}
    runs = [
        {"rate": rate, "seed": seed, "accuracy": accuracy}
        for (rate, seed), accuracy in accuracies.items()
    ]
    whole, tenth = sampled_classes.rows(runs)
    assert whole["minus_rate_1"] == {"mean": 0.0, "deviation": 0.0}
    assert tenth["accuracy"]["mean"] == pytest.approx(0.45)
    assert tenth["minus_rate_1"]["mean"] == pytest.approx(-0.15)
    assert tenth["minus_rate_1"]["deviation"] == pytest.approx(0.05 * 2**0.5)
    assert sampled_classes.rows(runs[2:])[0]["minus_rate_1"] is None


@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize(("rate", "streams"), [(1, False), (0.5, True)])
def test_rate_one_is_the_plain_head(head, rate, streams):
    images = types.SimpleNamespace(num_classes=6, x_train=np.zeros((4, 28, 28, 1)))
    args = sampled_classes.parse_args(["--head", head, "--dim", "8"])
    model = sampled_classes.make_model(images, rate, args)
    assert model.layers[-1].streams is streams


def test_sampling_benchmark_refuses_arguments(capsys):
    for flags, message in (
        (["--rates", "0"], "--rates must lie in"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--task", "faces"], "needs --data-dir"),
    ):
        with pytest.raises(SystemExit):
            sampled_classes.parse_args(flags)
        assert message in capsys.readouterr().err
