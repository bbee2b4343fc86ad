"""PEDCC-Loss on faces: Table 3 of the paper, one row per command.

    python experiments/faces.py --train FOLDER --lfw FOLDER --mse-root 2 --dim 512
    python experiments/faces.py --lfw lfw.npz            the development split of LFW

Trains on the images of some people, then compares images of others by the cosine of
their features. The people to train on come as one sub-folder each. What the test
needs is the official LFW folder, or an `.npz` with the same.
"""

from image_experiment.face_experiment import FaceExperiment
from image_experiment.settings import make_parser

FACES = FaceExperiment(
    name="faces",
    stem=64,
    stages=((2, 64), (2, 128), (2, 256), (2, 512)),
    dim=512,
    notes="The paper trains on FaceScrub and gives neither the epochs at which the "
    "learning rate falls nor the kind of weight decay; the flags say what stands in.",
)


if __name__ == "__main__":
    description = __doc__.splitlines()[0]
    make_parser(FACES, description).parse_args()  # `--help` ends here
    from image_experiment.training import run

    raise SystemExit(run(FACES, description=description))
