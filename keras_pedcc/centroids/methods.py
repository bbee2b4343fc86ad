"""The methods of `generate_pedcc`, and which of them the default takes."""

from keras_pedcc.centroids.closed_forms import kerdock_cosine, union_capacity
from keras_pedcc.centroids.quality import largest_cosine_bound

METHODS = (
    "auto",
    "simplex",
    "orthogonal_simplices",
    "polygon",
    "kerdock",
    "max_angle",
    "energy",
    "random",
)
# The default descends to the end up to the first number of classes, and for some
# minutes up to the second.
FEW_CLASSES, MANY_CLASSES = 2_000, 20_000


def resolve_method(method: str, num_classes: int, dim: int) -> str:
    """The method for these sizes, the best for "auto"; raises where it cannot be."""
    reach = {
        "simplex": num_classes <= dim + 1,
        "orthogonal_simplices": dim + 2 <= num_classes <= 2 * dim,
        "polygon": dim == 2,
        "kerdock": num_classes <= union_capacity(dim),
        "max_angle": True,
        "energy": True,
        "random": True,
    }
    if method == "auto":
        return _best_method(reach, num_classes, dim)
    if not isinstance(method, str) or method not in reach:
        raise ValueError(
            f"`method` must be one of {METHODS}. Received: method={method!r}. Leave it "
            "out for the best that is affordable."
        )
    if not reach[method]:
        raise ValueError(
            f"`method` must reach num_classes in dim dimensions. Received: "
            f"method={method!r}, num_classes={num_classes}, dim={dim}. "
            'Use method="auto".'
        )
    return method


def _best_method(reach: dict[str, bool], num_classes: int, dim: int) -> str:
    for name in ("simplex", "orthogonal_simplices", "polygon"):
        if reach[name]:
            return name
    # A descent ends 0.03 to 0.06 above the bound; see benchmarks/centroids.py.
    gap = 0.04 if num_classes <= FEW_CLASSES else 0.1
    within_reach = largest_cosine_bound(num_classes, dim) + gap
    cosine = kerdock_cosine(num_classes, dim) if reach["kerdock"] else 1
    if cosine <= within_reach:
        return "kerdock"
    if num_classes <= MANY_CLASSES:
        return "max_angle"
    return "kerdock" if reach["kerdock"] else "random"
