"""Predefined evenly-distributed class centroids (PEDCC) for Keras 3."""

from keras_pedcc.assignment import assign_classes
from keras_pedcc.backup import AtomicBackup
from keras_pedcc.callbacks import FinetuneCallback
from keras_pedcc.centroids import generate_pedcc
from keras_pedcc.cosine_dense import CosineDense
from keras_pedcc.embedding import VerificationCallback, embed, embedder
from keras_pedcc.heads import CenterDense, ProductDense
from keras_pedcc.kerdock_dense import KerdockDense
from keras_pedcc.loading import load_model
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
from keras_pedcc.metrics import (
    InterClassDistance,
    IntraClassDistance,
    inter_class_distance,
    intra_class_distance,
)
from keras_pedcc.models import PEDCCModel
from keras_pedcc.optimizers import FinetuneOptimizer
from keras_pedcc.pedcc_dense import PEDCCDense
from keras_pedcc.report import centroid_report
from keras_pedcc.retrieval import retrieval_report
from keras_pedcc.sharding import class_parallel
from keras_pedcc.storage import load_centroids, save_centroids
from keras_pedcc.streaming import nearest_classes
from keras_pedcc.verification import pair_scores, roc_curve, verification_report
from keras_pedcc.warmup import MarginWarmup

__version__ = "0.1.0"

__all__ = [
    "AMSoftmaxLoss",
    "ASoftmaxLoss",
    "ArcFaceLoss",
    "AtomicBackup",
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
    "VerificationCallback",
    "assign_classes",
    "centroid_report",
    "class_parallel",
    "embed",
    "embedder",
    "generate_pedcc",
    "inter_class_distance",
    "intra_class_distance",
    "load_centroids",
    "load_model",
    "nearest_classes",
    "pair_scores",
    "pedcc_loss",
    "retrieval_report",
    "roc_curve",
    "save_centroids",
    "verification_report",
]
