"""The soak of `reliability/`, with few steps."""

import json

import numpy as np
import pytest
from tensors import only_once

from reliability import soak

pytestmark = [pytest.mark.slow, only_once]


@pytest.mark.parametrize("head", ["pedcc", "streaming", "kerdock"])
def test_extreme_batches_do_no_harm(head, tmp_path):
    path = tmp_path / "result.json"
    flags = ["--steps", "300", "--policies", "mixed_float16", "--head", head]
    assert soak.main([*flags, "--accuracy", "0.3", "--result", str(path)]) == 0
    details = json.loads(path.read_text())["details"]["mixed_float16"]
    assert min(details["spoilt"].values()) > 0


def test_nan_growth_and_traces_are_told():
    watch = soak.Watch()
    watch.on_train_begin()
    watch.on_train_batch_end(0, {"loss": np.nan})
    watch.traces, watch.mib = [*range(20)], [float(each) for each in range(20)]
    record = soak.Record("", "")
    args = soak.parse_args(["--growth", "5"])
    soak.judge("float32", watch, 0.1, args, record)
    told = " ".join(record.failures)
    kinds = ["NaN in the losses of 1", "grows by 7.0 MiB", "accuracy 0.100"]
    assert all(kind in told for kind in kinds)
