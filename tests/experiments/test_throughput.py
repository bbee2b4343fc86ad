import dataclasses
import threading

import numpy as np
import pytest
import throughput
from cifar100 import CIFAR100
from image_experiment import settings
from image_experiment.data import Images
from tensors import NO_JIT

import keras_pedcc

pytestmark = pytest.mark.slow


def test_throughput_tells_in_one_line_that_there_are_no_images(tmp_path, capsys):
    assert throughput.main(["--data-dir", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("throughput: error: no cifar100.npz in ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("flag", ["--rounds", "--steps"])
def test_throughput_refuses_to_measure_nothing(flag, capsys):
    with pytest.raises(SystemExit):
        throughput.main([flag, "0"])
    assert "--rounds and --steps must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["pedcc", "cross_entropy"])
def test_keras_models_of_throughput_log_accuracy_alone(loss, rng, monkeypatch):
    small = dataclasses.replace(CIFAR100, stem=2, blocks=((1, 2),))
    monkeypatch.setattr(throughput, "CIFAR100", small)
    x = rng.integers(0, 256, (4, 32, 32, 3), dtype="uint8")
    images = Images(x, np.arange(4), x, np.arange(4), "noise", num_classes=100)
    args = settings.parse(small, ["--loss", loss, "--dim", "99", *NO_JIT])
    model = throughput.keras_model(args, images)
    logs = model.train_on_batch(x, np.arange(4), return_dict=True)
    assert set(logs) == {"accuracy", "loss"}
    assert isinstance(model, keras_pedcc.PEDCCModel) == (loss == "pedcc")


def test_batches_are_made_ahead_in_order_by_a_thread():
    threads = set()

    def make(number):
        threads.add(threading.get_ident())
        asked.append(number)
        return number

    asked = []
    made = throughput.made_ahead(make, 7, ahead=3)
    assert next(made) == 0
    assert list(made) == [1, 2, 3, 4, 5, 6]
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
