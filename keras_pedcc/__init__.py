"""Predefined evenly-distributed class centroids (PEDCC) for Keras 3."""

from keras_pedcc import plot
from keras_pedcc.centroids.assignment import assign_classes
from keras_pedcc.centroids.files import load_centroids, save_centroids
from keras_pedcc.centroids.fingerprint import (
    centroid_fingerprint,
    check_same_centroids,
    compare_fingerprints,
)
from keras_pedcc.centroids.generate import generate_pedcc
from keras_pedcc.centroids.quality import centroid_report
from keras_pedcc.data.batches import ClassBatches
from keras_pedcc.data.files import ImageFiles
from keras_pedcc.evaluation.class_distance import (
    InterClassDistance,
    IntraClassDistance,
    inter_class_distance,
    intra_class_distance,
)
from keras_pedcc.evaluation.classifier import classifier, identify
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
from keras_pedcc.evaluation.projector import ProjectorCallback
from keras_pedcc.evaluation.retrieval import retrieval_report
from keras_pedcc.evaluation.retrieval_callback import RetrievalCallback
from keras_pedcc.evaluation.sub_centers import dominant_sub_centers
from keras_pedcc.evaluation.verification import (
    pair_scores,
    roc_curve,
    verification_report,
)
from keras_pedcc.layers.center_dense import CenterDense
from keras_pedcc.layers.cosine_dense import CosineDense
from keras_pedcc.layers.kerdock_dense import KerdockDense
from keras_pedcc.layers.pedcc_dense import PEDCCDense
from keras_pedcc.layers.pedcc_product_dense import PEDCCProductDense
from keras_pedcc.layers.product_dense import ProductDense
from keras_pedcc.layers.sub_center_dense import SubCenterDense
from keras_pedcc.losses import (
    AdaFaceLoss,
    AMSoftmaxLoss,
    ArcFaceLoss,
    ASoftmaxLoss,
    CenterLoss,
    HingeLoss,
    LSoftmaxLoss,
    NONLLoss,
    NTCELoss,
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
from keras_pedcc.training.growing import grow_classes
from keras_pedcc.training.loading import load_model
from keras_pedcc.training.model import PEDCCModel
from keras_pedcc.training.placing import place_classes
from keras_pedcc.training.recipes import recipe
from keras_pedcc.training.warmup import MarginWarmup

__version__ = "0.1.0"

__all__ = [
    "AMSoftmaxLoss",
    "ASoftmaxLoss",
    "AdaFaceLoss",
    "ArcFaceLoss",
    "AtomicBackup",
    "Blockwise",
    "CenterDense",
    "CenterLoss",
    "ClassBatches",
    "CosineDense",
    "FinetuneCallback",
    "FinetuneOptimizer",
    "HingeLoss",
    "ImageFiles",
    "InterClassDistance",
    "IntraClassDistance",
    "KerdockDense",
    "LSoftmaxLoss",
    "MarginWarmup",
    "NONLLoss",
    "NTCELoss",
    "PEDCCDense",
    "PEDCCLoss",
    "PEDCCModel",
    "PEDCCProductDense",
    "ProductDense",
    "ProjectorCallback",
    "RetrievalCallback",
    "Sampled",
    "SubCenterDense",
    "VerificationCallback",
    "assign_classes",
    "centroid_fingerprint",
    "centroid_report",
    "check_same_centroids",
    "class_parallel",
    "class_priors",
    "classifier",
    "compare_fingerprints",
    "compatibility_report",
    "cosine_score",
    "dominant_sub_centers",
    "embed",
    "embedder",
    "energy_score",
    "generate_pedcc",
    "grow_classes",
    "identify",
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
    "place_classes",
    "plot",
    "recipe",
    "retrieval_report",
    "roc_curve",
    "save_centroids",
    "verification_report",
]
