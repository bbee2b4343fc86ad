"""PEDCC-Loss on CIFAR-100: Table 2 of the paper, one row per command.

    python experiments/cifar100.py --fixed                 n = 1
    python experiments/cifar100.py                         n = 1, fine-tuned
    python experiments/cifar100.py --mse-root 2            n = 2, fine-tuned

Network, augmentation and recipe are the paper's, at full size: on a CPU take a
narrower network and fewer epochs (`--width`, `--epochs`, `--decay-epochs`).
"""

from image_experiment.data import Source
from image_experiment.experiment import Experiment
from image_experiment.settings import make_parser

CIFAR100 = Experiment(
    name="cifar100",
    source=Source(
        title="CIFAR-100",
        files=("cifar100.npz",),
        tfds_name="cifar100",
        shape=(32, 32, 3),
        num_classes=100,
    ),
    stem=96,
    blocks=((4, 96), (4, 192), (4, 384)),
    dim=512,
    pad=4,
    flip=True,
    notes="The paper gives neither the epochs at which the learning rate falls nor "
    "the kind of weight decay; the flags say what stands in. Nor does it say how the "
    "network begins: here kernels He-normal, slopes of PReLU 0.25, one per channel, "
    "batch normalisation with momentum 0.9 and epsilon 1e-5, "
    "pixels normalised by mean and variance of each channel; images that do not fill "
    "a batch wait for the next epoch.",
)


if __name__ == "__main__":
    description = __doc__.splitlines()[0]
    make_parser(CIFAR100, description).parse_args()  # `--help` ends here
    from image_experiment.training import run

    raise SystemExit(run(CIFAR100, description=description))
