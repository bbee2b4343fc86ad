"""Heads and losses whose constants fit together, by name."""

from typing import Any, NamedTuple

from keras_pedcc.layers.pedcc_dense import PEDCCDense
from keras_pedcc.losses.pedcc import PEDCCLoss
from keras_pedcc.losses.priors import Priors
from keras_pedcc.losses.scale import auto_scale

# Margin, lambda (`mse_weight`), and whether the centroids are trained at once.
_CONSTANTS = {
    "paper": (0.5, 10.0, False),
    "frozen": (0.2, 3.0, False),
    "trained": (0.2, 3.0, True),
}


class Recipe(NamedTuple):
    """What `recipe` returns."""

    head: PEDCCDense
    loss: PEDCCLoss


def recipe(
    name: str, /, num_classes: int, *, priors: Priors | None = None, **head: Any
) -> Recipe:
    """Makes a head and the loss whose constants fit it.

    | name | centroids | margin, lambda | take it for |
    |---|---|---|---|
    | `"trained"` | trained from the start | 0.2, 3 | accuracy |
    | `"frozen"` | fixed | 0.2, 3 | features that stay comparable |
    | `"paper"` | fixed at first | 0.5, 10 | the paper's results |

    All begin with the same predefined centroids.

    - `"trained"` is the one to start with: few images for each class, uneven classes,
      or classes as hard as photographs.
    - `"frozen"` is for an index that must survive a new network, because two networks
      with the same centroids put a class in one place, and for transfer learning.
    - `"paper"` reproduces the paper. Compare it with `"trained"` on easy images. Its
      late fine-tuning is a `FinetuneCallback` in `fit`, from epoch 70 of 120 on.

    Head and loss are ordinary objects: `"trained"` gives `PEDCCDense(num_classes,
    trainable=True)` and `PEDCCLoss(margin=0.2, mse_weight=3.0)`. The scale is the
    paper's 15; for more than 8,360 classes `"trained"` and `"frozen"` take a larger
    one, that of `losses.auto_scale`.

    Args:
        name: `"paper"`, `"frozen"` or `"trained"`, positional.
        num_classes: int, at least 2.
        priors: Sequence or array of `num_classes` positive numbers, counts or
            frequencies of the classes, for uneven ones: see `class_priors`. Defaults to
            `None`.
        **head: Further arguments of `PEDCCDense`, such as `name`, or
            `return_features=False`, which a plain `keras.Model` needs.

    Returns:
        `Recipe`, a named tuple of `head`, a `PEDCCDense`, and `loss`, a `PEDCCLoss`.

    Raises:
        TypeError: `num_classes` is not a whole number.
        ValueError: `name` is no recipe, or another argument is out of range.

    Example:

    >>> head, loss = keras_pedcc.recipe("frozen", num_classes=10)
    >>> loss.margin, loss.mse_weight, head.frozen
    (0.2, 3.0, True)

    Reference: Zhu et al., IEEE Access 2020, section IV, for `"paper"`; the others were
    chosen on held-out images, see docs/results/trained_centroids.md.
    """
    if name not in _CONSTANTS:
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, _CONSTANTS))}. Received: "
            f"name={name!r}. Take 'trained' for accuracy, 'frozen' for features that "
            "must stay comparable, 'paper' for its results."
        )
    if {"trainable", "frozen"} & head.keys():
        raise ValueError(
            "`name` decides whether the centroids are trained. Received: "
            f"{sorted({'trainable', 'frozen'} & head.keys())} beside name={name!r}. "
            "Leave it out, or take another recipe."
        )
    margin, mse_weight, trained = _CONSTANTS[name]
    made = PEDCCDense(num_classes, trainable=trained, **head)
    scale = 15.0
    if name != "paper":
        scale = max(scale, auto_scale(made.capacity, margin=margin))
    return Recipe(made, PEDCCLoss(scale, margin, mse_weight, priors=priors))
