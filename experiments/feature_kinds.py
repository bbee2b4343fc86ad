"""The heads and losses that the studies on features compare, by name."""

import dataclasses

BASELINE = "cross entropy"
MILD = {"scale": "auto", "margin": 0.2, "mse_weight": 3.0}
PAPER = {"scale": 15.0, "margin": 0.5, "mse_weight": 10.0}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A head and its loss.

    Attributes:
        head: `"dense"`, `"cosine"`, `"shared cosine"` (the same start for every seed),
            `"frozen"`, `"frozen random"` or `"trained"`.
        loss: Name of a loss of `keras_pedcc`, or `None` for cross entropy.
        constants: Arguments of the loss.
        margins: Margins among which held-out images choose; none for a given one.
        late: bool. Whether the centroids are fine-tuned late.
    """

    head: str
    loss: str | None = None
    constants: dict = dataclasses.field(default_factory=dict)
    margins: tuple = ()
    late: bool = False


SCALE = {"scale": 15.0}
KINDS = {
    BASELINE: Kind("dense"),
    "AM-Softmax": Kind("cosine", "AMSoftmaxLoss", SCALE, (0.2, 0.35)),
    "ArcFace": Kind("cosine", "ArcFaceLoss", SCALE, (0.2, 0.5)),
    "paper": Kind("frozen", "PEDCCLoss", PAPER, late=True),
    "frozen mild": Kind("frozen", "PEDCCLoss", MILD),
    "frozen mild, no eq. 9": Kind("frozen", "PEDCCLoss", {**MILD, "mse_weight": 0.0}),
    "trained": Kind("trained", "PEDCCLoss", MILD),
    "trained, lambda 10": Kind("trained", "PEDCCLoss", {**MILD, "mse_weight": 10.0}),
    "AM-Softmax, shared start": Kind(
        "shared cosine", "AMSoftmaxLoss", {**SCALE, "margin": 0.2}
    ),
    "dot regression": Kind("frozen", "dot regression"),
    "frozen mild, random": Kind("frozen random", "PEDCCLoss", MILD),
}
