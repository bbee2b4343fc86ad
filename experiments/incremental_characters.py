"""The game of `incremental.py` on handwritten characters.

    python experiments/incremental_characters.py --data-dir FOLDER --result FILE

27 of the 47 classes with 500 images each, then five sessions of four classes with five
images each. The seed draws the order of the classes. A network of three convolutions is
trained with cross entropy on the images of the base session; what its last convolution
says is then what `feature_heads.Network` is trained on, with each loss. For the trials
of rates a network of its own is trained on two thirds of the base classes.
"""

import pathlib
import types

from incremental_flags import parser_of


def parse_args(argv=None):
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--data-dir", type=pathlib.Path, help="folder with EMNIST")
    add("--backbone-steps", type=int, default=600)
    parser.set_defaults(base=27, classes=4, epochs=8)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # `--help` ends here, before the imports that take seconds


import keras
import numpy as np
from emnist import EMNIST
from feature_heads import Features, Record, pick
from image_experiment import data
from incremental import HELD_OUT, study, summary
from incremental_game import Game
from upgrade_study import heads, tasks, training

KEPT = 600  # training images of each class
BACKBONE = {"learning_rate": 0.05, "batch_size": 128, "dim": 64}


def main(argv=None):
    args = parse_args(argv)
    images = data.load(EMNIST.source, args.data_dir)
    kept = tasks.first_of_each(images.y_train, images.num_classes, KEPT)
    images.x_train, images.y_train = images.x_train[kept], images.y_train[kept]
    few = args.base * 2 // 3, args.base_images - HELD_OUT  # as in `trial_plan`
    trial_game = Game(features(images, args.trial_seed, *few, args), args)
    games = {
        seed: Game(features(images, seed, args.base, args.base_images, args), args)
        for seed in args.seeds
    }
    record = Record("incremental_characters", args, summary)
    study(games.get, trial_game, record, args)


def features(images, seed, known, per_class, args):
    """What a network says of all images, trained on some of the first classes.

    Args:
        images: `image_experiment.data.Images`.
        seed: int. Draws the order of the classes, the images and the weights.
        known: Number of classes that the network is trained on.
        per_class: Number of their images.
        args: Parsed command line.

    Returns:
        `feature_heads.Features`, standardized over what the network is trained on.
    """
    new_class = np.random.default_rng(seed).permutation(images.num_classes)
    y_train, y_test = new_class[images.y_train], new_class[images.y_test]
    part = pick(y_train, per_class, seed, range(known))
    embed = backbone(images.x_train, y_train, part, seed, known, args)
    x_train, x_test = (
        embed.predict(x, batch_size=500, verbose=0)
        for x in (images.x_train, images.x_test)
    )
    mean, deviation = x_train[part].mean(axis=0), x_train[part].std(axis=0) + 1e-3
    x_train, x_test = ((x - mean) / deviation for x in (x_train, x_test))
    return Features(x_train, y_train, x_test, y_test)


def backbone(x, y, part, seed, known, args):
    """A model from images to the outputs of the last convolution, flattened."""
    settings = types.SimpleNamespace(steps=args.backbone_steps, **BACKBONE)
    head = heads.OLD["cross entropy"]
    rows = heads.start_rows(head, known, settings.dim, seed, own_seed=seed)
    task = types.SimpleNamespace(x=x, y=y)
    widths = training.NEW_WIDTHS
    model, _ = training.train(task, head, rows, part, seed, settings, widths)
    flat = next(x for x in model.layers if isinstance(x, keras.layers.Flatten))
    return keras.Model(model.input, flat.output)


if __name__ == "__main__":
    main()
