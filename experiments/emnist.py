"""PEDCC-Loss on handwritten characters: Table 1 of the paper, one row per command.

    python experiments/emnist.py --fixed                 n = 1
    python experiments/emnist.py                         n = 1, fine-tuned
    python experiments/emnist.py --mse-root 2            n = 2, fine-tuned

From tensorflow-datasets, or as `emnist_balanced.npz`, the data are the official
Balanced split of EMNIST. Another set of characters in the same 47 classes goes as
`emnist47.npz`; its accuracies are not comparable with the paper's.
"""

from image_experiment.data import Source
from image_experiment.experiment import Experiment
from image_experiment.settings import make_parser

EMNIST = Experiment(
    name="emnist",
    source=Source(
        title="EMNIST Balanced",
        files=("emnist_balanced.npz", "emnist47.npz"),
        tfds_name="emnist/balanced",
        shape=(28, 28, 1),
        num_classes=47,
        unofficial=("emnist47.npz",),
        tfds_transposed=True,
    ),
    stem=64,
    blocks=((3, 64), (3, 64), (3, 64)),
    dim=256,
    pad=0,
    flip=False,
    notes="The paper does not say how wide the features are here (256 is the width of "
    "the network it cites), nor whether the images are augmented (no crop by default).",
)


if __name__ == "__main__":
    description = __doc__.splitlines()[0]
    make_parser(EMNIST, description).parse_args()  # `--help` ends here
    from image_experiment.training import run

    raise SystemExit(run(EMNIST, description=description))
