"""Face verification: train on some people, compare images of others.

The command line needs it before Keras: functions import what needs Keras.
"""

import dataclasses
import pathlib

import numpy as np

from image_experiment import face_data

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class FaceExperiment:
    """Training on people and a test on pairs of images of other people.

    Attributes:
        name: Name of the experiment, and of its folder under `runs/`.
        stem: Filters of the network's first convolution.
        stages: `(blocks, filters)` of each stage of the network.
        dim: Length of the features.
        notes: What the paper leaves open here, for the help text.
        batch_size: Images per step.
        pad: Pixels around an image for the random crop.
        flip: Whether half of the images are mirrored.
    """

    name: str
    stem: int
    stages: tuple
    dim: int
    notes: str
    batch_size: int = 128
    pad: int = 0
    flip: bool = True

    def add_data_flags(self, add):
        add(
            "--lfw",
            "--data-dir",
            dest="lfw",
            type=pathlib.Path,
            required=True,
            help="the official folder of LFW (pairs.txt beside the images), or an .npz "
            "file; a folder that holds an lfw.npz will do",
        )
        add(
            "--train",
            type=pathlib.Path,
            help="folder with a sub-folder of images for each person (FaceScrub, "
            "CASIA), or an .npz with images and labels; tested on the ten folds of "
            "LFW. Without it: trained and tested on the development split of LFW",
        )
        add(
            "--image-size",
            type=int,
            default=144,
            help="side to which the images of a --train folder are resized",
        )
        add("--crop", type=int, help="side of the crop; about 8/9 of the image's")
        add(
            "--unreadable",
            type=float,
            default=0.01,
            help="largest share of files in --train that may be no readable images",
        )
        add(
            "--min-images",
            type=int,
            default=2,
            help="people with fewer are not trained on; the paper does not say",
        )
        add(
            "--held-out",
            type=int,
            help="so many people are not trained on, and pairs of them are watched "
            "in training and give the threshold for the development split. If left out "
            "100 there, and none with --train",
        )
        add(
            "--score-held-out",
            action="store_true",
            help="choose settings: score the pairs of held-out people, in ten folds, "
            "in place of the test pairs",
        )
        add("--dropout", type=float, default=0.4, help="before FC1, as for ArcFace")
        add(
            "--flip-test",
            action="store_true",
            help="average the features of each image of a pair and its mirror image; "
            "the paper does not",
        )

    def lowest(self):
        """The smallest value allowed of each whole-number flag of the data."""
        return {
            "image_size": 9,
            "unreadable": 0,
            "min_images": 1,
            "held_out": 0,
            "dropout": 0,
        }

    def load(self, args):
        return face_data.load(args)

    def network(self, args, images):
        """Input and features of the network."""
        from image_experiment.networks import ir_resnet, pixel_statistics, scaled

        return ir_resnet(
            (images.crop, images.crop, 3),
            scaled(self.stem, args.width),
            [(number, scaled(filters, args.width)) for number, filters in self.stages],
            args.dim,
            statistics=pixel_statistics(images.x_train),
            weight_decay=args.weight_decay,
            feature_norm=args.feature_norm,
            dropout=args.dropout,
        )

    def scored_on(self, args):
        return "held-out pairs" if args.score_held_out else "test pairs"

    def title(self, images):
        return "Faces"

    def sizes(self, args, images):
        """How many images there are for what, in words."""
        watched = images.held_out
        return (
            f"{len(images.y_train)} images of {images.num_classes} people to train on, "
            f"{0 if watched is None else len(watched.same)} held-out pairs, "
            f"{len(images.test.same)} {self.scored_on(args)} to score"
        )

    def data_facts(self, args, images):
        """What `result.json` says about the data of this kind of experiment."""
        counts = np.bincount(images.y_train)
        return {
            "people": images.num_classes,
            "images_per_person": [int(counts.min()), int(counts.max())],
            "crop": images.crop,
            "held_out_pairs": 0
            if images.held_out is None
            else len(images.held_out.same),
            "scored_pairs": len(images.test.same),
            "scored_on": self.scored_on(args),
        }

    def each_epoch(self, args, images):
        """Validation data, and callbacks that score each epoch."""
        import keras_pedcc

        watched = images.held_out
        if watched is None:
            return None, []
        shown = face_data.centre(watched.images, images.crop)
        return None, [
            keras_pedcc.VerificationCallback(
                shown,
                watched.pairs,
                watched.same,
                folds=face_data.fold_evenly(watched.same),
                batch_size=args.batch_size,
                flip=args.flip_test,
            )
        ]

    def predict(self, args, images, model):
        """Scores of the test pairs and of the held-out pairs."""
        import keras_pedcc

        embedder = keras_pedcc.embedder(model)

        def scores(pairs):
            shown = face_data.centre(pairs.images, images.crop)
            features = keras_pedcc.embed(
                embedder, shown, batch_size=args.batch_size, flip=args.flip_test
            )
            dead = ~np.isfinite(features).all(axis=1) | ~features.any(axis=1)
            if dead.any():
                return None
            return keras_pedcc.pair_scores(features, pairs=pairs.pairs)

        watched = images.held_out
        return {
            "test": scores(images.test),
            "held_out": None if watched is None else scores(watched),
        }

    def score(self, args, images, predicted):
        """The numbers of `result.json` that say how good the model is."""
        watched = images.held_out is not None
        if predicted["test"] is None or (watched and predicted["held_out"] is None):
            return {"diverged": True, "accuracy": 0.5}  # that of chance
        pixels = {"test": pixel_scores(images.test), "held_out": None}
        if images.held_out is not None:
            pixels["held_out"] = pixel_scores(images.held_out)
        ours, floor = verify(images, predicted), verify(images, pixels)
        gain = bootstrap(ours.pop("right") * 1.0 - floor.pop("right"))
        return {
            "diverged": False,
            "accuracy": ours["accuracy"],
            **ours,
            "raw_pixels": floor,
            "above_raw_pixels": gain,
        }

    def draw(self, args, images, model, predicted):
        """Draws all figures; returns their names with what they show."""
        from image_experiment import figures

        folder, same = args.output_dir, images.test.same
        figures.draw_curves(
            args, "held-out pairs", folder / "curves.png", "val_verification_accuracy"
        )
        figures.draw_roc(
            {"network": predicted["test"], "raw pixels": pixel_scores(images.test)},
            same,
            folder / "roc.png",
        )
        figures.draw_pairs(predicted["test"], same, folder / "pairs.png")
        return {
            "curves.png": "accuracy and loss by epoch",
            "roc.png": "true and false accept rate at every threshold",
            "pairs.png": "cosines of pairs of one and of two people",
        }

    def summary(self, result):
        if result["diverged"]:
            return "The features are not finite"
        low, high = result["above_raw_pixels"]["interval"]
        text = f"Accuracy on {result['data']['scored_on']}: "
        text += f"{100 * result['accuracy']:.2f} %"
        if "standard_error" in result["test"]:
            text += f" (standard error {100 * result['test']['standard_error']:.2f})"
        return (
            f"{text}, AUC {result['test']['auc']:.4f}, EER "
            f"{100 * result['test']['eer']:.2f} %; above raw pixels by "
            f"{100 * low:+.1f} to {100 * high:+.1f} points (95 %)"
        )

    def held_out_flags(self, number, *, choosing):
        """Flags of the runs by which settings are chosen, and of the others."""
        return ["--held-out", number, *(["--score-held-out"] if choosing else [])]


def verify(images, scores):
    """How well scores tell the pairs apart: the protocol of LFW.

    Of the ten folds, each is decided by the threshold of the other nine. Without
    folds, the threshold is that of the held-out pairs.

    Returns:
        Dict with `accuracy`; `test` and `held_out`, see
        `keras_pedcc.verification_report`; `right`, whether each pair was decided
        rightly.
    """
    import keras_pedcc

    test, watched = images.test, images.held_out
    held_out = None
    if watched is not None:
        folds = face_data.fold_evenly(watched.same)
        held_out = keras_pedcc.verification_report(
            watched.same, scores["held_out"], folds=folds
        )
    folds = face_data.fold_evenly(test.same) if test.folds is None else test.folds
    report = keras_pedcc.verification_report(test.same, scores["test"], folds=folds)
    if test.folds is not None:
        place = np.searchsorted(np.unique(folds), folds)
        thresholds = np.array(report["fold_thresholds"])[place]
        right = (scores["test"] >= thresholds) == test.same
        accuracy = report["accuracy"]
    else:
        right = (scores["test"] >= held_out["threshold"]) == test.same
        accuracy = float(right.mean())
        report = {
            key: value
            for key, value in report.items()
            if key in ("auc", "eer", "pairs", "same") or key.startswith("tar")
        }
    return {"accuracy": accuracy, "test": report, "held_out": held_out, "right": right}


def pixel_scores(pairs):
    """Cosines of the raw pixels: the floor that a network must be above."""
    import keras_pedcc

    flat = pairs.images.reshape(len(pairs.images), -1)
    return keras_pedcc.pair_scores(flat, pairs=pairs.pairs)


def bootstrap(values):
    """Mean of a value per pair, and its 95 % interval over resampled pairs."""
    draw = np.random.default_rng(0)
    means = [
        values[draw.integers(0, len(values), len(values))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}
