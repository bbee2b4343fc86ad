"""What one experiment on images is: data, network, and how a run is scored.

The command line needs it before Keras: methods import what needs Keras.
"""

import dataclasses
import pathlib

import numpy as np

from image_experiment import data


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Classification of images with a VGG network, by the recipe of the paper.

    Attributes:
        name: Name of the experiment, and of its folder under `runs/`.
        source: `Source` of the images.
        stem: Filters of the network's first convolution.
        blocks: `(convolutions, filters)` of each block of the network.
        dim: Length of the features.
        pad: Pixels around an image for the random crop.
        flip: Whether half of the images are mirrored.
        notes: What the paper leaves open here, for the help text.
        batch_size: Images per step.
    """

    name: str
    source: data.Source
    stem: int
    blocks: tuple
    dim: int
    pad: int
    flip: bool
    notes: str
    batch_size: int = 256

    def add_data_flags(self, add):
        files = " or ".join(self.source.files)
        add(
            "--data-dir",
            type=pathlib.Path,
            help=f"folder with {files}; without it, tensorflow-datasets gives the data",
        )
        add("--limit", type=int, help="train on so many images, even over the classes")
        add(
            "--imbalance",
            type=float,
            default=1.0,
            help="thin the classes out, down to one image for so many of the first "
            "class, in equal ratios from class to class; not in the paper",
        )
        add(
            "--held-out",
            type=int,
            default=0,
            help="choose settings: score on so many training images, which are then "
            "not trained on, in place of the test images",
        )

    def lowest(self):
        """The smallest value allowed of each whole-number flag of the data."""
        return {"held_out": 0, "limit": 1, "imbalance": 1}

    def load(self, args):
        return data.load(
            self.source,
            args.data_dir,
            held_out=args.held_out,
            limit=args.limit,
            imbalance=args.imbalance,
        )

    def network(self, args, images):
        """Input and features of the network."""
        from image_experiment.networks import pixel_statistics, scaled, vgg

        return vgg(
            self.source.shape,
            scaled(self.stem, args.width),
            [(number, scaled(filters, args.width)) for number, filters in self.blocks],
            args.dim,
            statistics=pixel_statistics(images.x_train),
            weight_decay=args.weight_decay,
            feature_norm=args.feature_norm,
        )

    def title(self, images):
        other = images.origin in self.source.unofficial
        return self.source.title + (" classes, not the official images," * other)

    def scored_on(self, args):
        return "held-out training images" if args.held_out else "test images"

    def sizes(self, args, images):
        """How many images there are for what, in words."""
        return (
            f"{len(images.y_train)} images to train on, {len(images.y_test)} "
            f"{self.scored_on(args)}"
        )

    def data_facts(self, args, images):
        """What `result.json` says about the data of this kind of experiment."""
        return {
            "scored_images": len(images.y_test),
            "scored_on": self.scored_on(args),
        }

    def each_epoch(self, args, images):
        """Validation data, and callbacks that score each epoch."""
        from image_experiment.batches import soft_labels
        from image_experiment.devices import even_parts
        from image_experiment.losses import has_soft_labels

        labels = images.y_test
        if has_soft_labels(args):  # the metrics expect the same form as in training
            labels = soft_labels(labels, images.num_classes)
        # What devices could not share is left out here, not of the result.
        number = len(labels) - len(labels) % even_parts(args)
        return (images.x_test[:number], labels[:number]), []

    def predict(self, args, images, model):
        from keras_pedcc.evaluation.prediction import predict_all

        return predict_all(model, images.x_test, batch_size=args.batch_size)

    def score(self, args, images, predicted):
        """The numbers of `result.json` that say how good the model is."""
        import keras_pedcc
        from image_experiment.reporting import unit_rows

        logits, labels = predicted["logits"], images.y_test
        features = unit_rows(predicted["features"])
        return {
            "diverged": bool(np.isnan(logits).any()),
            "accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
            "intra_class_distance": keras_pedcc.intra_class_distance(features, labels),
            "inter_class_distance": keras_pedcc.inter_class_distance(features, labels),
        }

    def draw(self, args, images, model, predicted):
        """Draws all figures; returns their names with what they show."""
        from image_experiment import figures

        return figures.draw(args, self.scored_on(args), images, model, predicted)

    def summary(self, result):
        facts = result["data"]
        return (
            f"Accuracy after the last epoch: {100 * result['accuracy']:.2f} % of "
            f"{facts['scored_images']} {facts['scored_on']}"
        )

    def held_out_flags(self, number, *, choosing):
        """Flags of the runs by which settings are chosen, and of the others."""
        return ["--held-out", number] if choosing else []
