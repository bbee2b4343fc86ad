"""Predefined evenly-distributed class centroids (PEDCC) for Keras 3."""

from keras_pedcc.centroids.assignment import assign_classes
from keras_pedcc.centroids.files import load_centroids, save_centroids
from keras_pedcc.centroids.fingerprint import (
    centroid_fingerprint,
    check_same_centroids,
    compare_fingerprints,
)
from keras_pedcc.centroids.generate import generate_pedcc
from keras_pedcc.centroids.quality import centroid_report
from keras_pedcc.evaluation.class_distance import (
    InterClassDistance,
    IntraClassDistance,
    inter_class_distance,
    intra_class_distance,
)
from keras_pedcc.evaluation.compatibility import compatibility_report
from keras_pedcc.evaluation.embedding import VerificationCallback, embed, embedder
from keras_pedcc.evaluation.novelty import (
    cosine_score,
    energy_score,
    length_score,
    neighbor_score,
    novelty_report,
    novelty_threshold,
)
from keras_pedcc.evaluation.retrieval import retrieval_report
from keras_pedcc.evaluation.verification import (
    pair_scores,
    roc_curve,
    verification_report,
)
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.kerdock_dense import KerdockDense
from keras_pedcc.layers.pedcc_dense import PEDCCDense
from keras_pedcc.layers.product_dense import ProductDense
from keras_pedcc.losses import (
    AMSoftmaxLoss,
    ArcFaceLoss,
    ASoftmaxLoss,
    CenterLoss,
    HingeLoss,
    LSoftmaxLoss,
    PEDCCLoss,
    pedcc_loss,
)
from keras_pedcc.losses.priors import class_priors
from keras_pedcc.scores.choice import Blockwise, Sampled
from keras_pedcc.scores.search import nearest_classes
from keras_pedcc.scores.sharding import class_parallel
from keras_pedcc.training.backup import AtomicBackup
from keras_pedcc.training.finetune import FinetuneCallback
from keras_pedcc.training.finetune_optimizer import FinetuneOptimizer
from keras_pedcc.training.loading import load_model
from keras_pedcc.training.model import PEDCCModel
from keras_pedcc.training.warmup import MarginWarmup

__version__ = "0.1.0"

__all__ = [
    "AMSoftmaxLoss",
    "ASoftmaxLoss",
    "ArcFaceLoss",
    "AtomicBackup",
    "Blockwise",
    "CenterDense",
    "CenterLoss",
    "CosineDense",
    "FinetuneCallback",
    "FinetuneOptimizer",
    "HingeLoss",
    "InterClassDistance",
    "IntraClassDistance",
    "KerdockDense",
    "LSoftmaxLoss",
    "MarginWarmup",
    "PEDCCDense",
    "PEDCCLoss",
    "PEDCCModel",
    "ProductDense",
    "Sampled",
    "VerificationCallback",
    "assign_classes",
    "centroid_fingerprint",
    "centroid_report",
    "check_same_centroids",
    "class_parallel",
    "class_priors",
    "compare_fingerprints",
    "compatibility_report",
    "cosine_score",
    "embed",
    "embedder",
    "energy_score",
    "generate_pedcc",
    "inter_class_distance",
    "intra_class_distance",
    "length_score",
    "load_centroids",
    "load_model",
    "nearest_classes",
    "neighbor_score",
    "novelty_report",
    "novelty_threshold",
    "pair_scores",
    "pedcc_loss",
    "retrieval_report",
    "roc_curve",
    "save_centroids",
    "verification_report",
]
