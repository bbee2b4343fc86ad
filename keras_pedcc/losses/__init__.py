"""Losses: PEDCC-Loss and the losses that it is compared with."""

from keras_pedcc.losses.adaface import AdaFaceLoss, adaface_loss
from keras_pedcc.losses.am_softmax import AMSoftmaxLoss, am_softmax_loss
from keras_pedcc.losses.annealing import annealing_lambda
from keras_pedcc.losses.arcface import ArcFaceLoss, arcface_loss
from keras_pedcc.losses.center import CenterLoss, center_loss
from keras_pedcc.losses.class_contrast import (
    NONLLoss,
    NTCELoss,
    nonl_loss,
    ntce_loss,
)
from keras_pedcc.losses.hinge import HingeLoss, hinge_loss
from keras_pedcc.losses.multiple_angle import (
    ASoftmaxLoss,
    LSoftmaxLoss,
    a_softmax_loss,
    l_softmax_loss,
)
from keras_pedcc.losses.pedcc import PEDCCLoss, centroid_distance, pedcc_loss
from keras_pedcc.losses.scale import auto_scale, loss_floor

__all__ = [
    "AMSoftmaxLoss",
    "ASoftmaxLoss",
    "AdaFaceLoss",
    "ArcFaceLoss",
    "CenterLoss",
    "HingeLoss",
    "LSoftmaxLoss",
    "NONLLoss",
    "NTCELoss",
    "PEDCCLoss",
    "a_softmax_loss",
    "adaface_loss",
    "am_softmax_loss",
    "annealing_lambda",
    "arcface_loss",
    "auto_scale",
    "center_loss",
    "centroid_distance",
    "hinge_loss",
    "l_softmax_loss",
    "loss_floor",
    "nonl_loss",
    "ntce_loss",
    "pedcc_loss",
]
