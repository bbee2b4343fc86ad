"""The share of its margin that a loss has while `MarginWarmup` runs."""

from typing import Any

import keras


class MarginShare:
    """Holds the share as a variable while `MarginWarmup` runs, and nothing else.

    A compiled step would keep the value of a plain number. Keras hands the state of
    metrics to compiled steps on every backend, and it is no weight: neither saved,
    nor restored, nor copied by `set_weights`.

    Attributes:
        share: The share as a float, 1 while no `MarginWarmup` runs.
        value: The variable that holds it, or `None`: the margin is full.
        metrics: The metric that has the variable, in a list that is else empty.
        callback: The `MarginWarmup` that sets the share.
    """

    value: Any
    callback: Any

    def __init__(self) -> None:
        self.share = 1.0
        self.value = None
        self.metrics: list[_Share] = []
        self.callback = None

    def start(self) -> None:
        """Makes the variable, with the value 1."""
        self.metrics = [_Share()]
        self.value = self.metrics[0].value

    def set(self, share: float) -> None:
        """Sets the variable."""
        self.share = share
        self.value.assign(share)

    def stop(self) -> None:
        """Forgets the variable."""
        self.share, self.value, self.metrics = 1.0, None, []


class _Share(keras.metrics.Metric):
    """State that no batch changes and no log shows."""

    def __init__(self) -> None:
        super().__init__(name="margin_share", dtype="float32")
        self.value = keras.Variable(
            1.0, "float32", trainable=False, aggregation="mean", name="margin_share"
        )

    def reset_state(self) -> None:
        pass

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {}
