import keras
import numpy as np
import pytest
from keras import ops
from tensors import FEW_STEPS, draw_alike

from keras_pedcc import (
    CenterDense,
    FinetuneCallback,
    KerdockDense,
    PEDCCDense,
    PEDCCLoss,
    PEDCCModel,
    ProductDense,
    VerificationCallback,
    embed,
    embedder,
    pair_scores,
    verification_report,
)

PAIRS = np.array([[i, j] for i in range(0, 10, 2) for j in (i + 10, i + 1)])
SAME = np.tile([1, 0], 5)


def made(head=None, shape=(8,), compiled=True):
    inputs = keras.Input(shape)
    flat = inputs if len(shape) == 1 else keras.layers.Flatten()(inputs)
    hidden = keras.layers.Dense(16, activation="tanh")(flat)
    model = PEDCCModel(inputs, (head or PEDCCDense(5))(keras.layers.Dense(6)(hidden)))
    if compiled:
        sgd = keras.optimizers.SGD(0.05)
        model.compile(sgd, PEDCCLoss(), metrics=["accuracy"], **FEW_STEPS)
    return model


def called(model, images):
    """Outputs as `predict` gives them, without what it takes to compile."""
    return keras.tree.map_structure(ops.convert_to_numpy, model(images))


@pytest.fixture
def images(rng):
    """Twenty images; the last ten look like the first ten."""
    alike = np.tile(rng.normal(size=(10, 8)), (2, 1))
    return (alike + rng.normal(size=(20, 8)) / 3).astype("float32")


LABELS = np.arange(20) % 5


HEADS = {
    "pedcc": lambda: PEDCCDense(5),
    "streaming": lambda: PEDCCDense(5, scores="blockwise"),
    "kerdock": lambda: KerdockDense(12),
    "product": lambda: ProductDense(5),
    "center": lambda: CenterDense(5),
}


@pytest.mark.parametrize("name", HEADS)
def test_embedder_gives_the_features_without_the_head(images, name):
    model = made(HEADS[name](), compiled=False)
    part = embedder(model)
    expected = called(model, images)["features"]
    np.testing.assert_allclose(called(part, images), expected, atol=1e-6)
    assert [w.path for w in part.weights] == [w.path for w in model.weights[:4]]
    assert not of_this_package(part)


def of_this_package(model):
    """Layers of this package in a model, apart from the model itself."""
    names = [(each, type(each).__module__) for each in model.layers]
    return [each for each, name in names if name.startswith("keras_pedcc")]


def in_nested(layers):
    """The layers, the last two in a model inside the model."""
    *first, inputs = layers[:-2]
    return keras.Sequential([*first, inputs, keras.Sequential(layers[-2:])])


def functional(layers):
    outputs = inputs = layers[0]
    for layer in layers[1:]:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def with_outputs(layers):
    model = functional(layers)
    return keras.Model(model.input, {"other": model.input, "logits": model.output})


@pytest.mark.parametrize(
    "kind", [functional, with_outputs, keras.Sequential, in_nested]
)
def test_embedder_of_logits_alone_is_what_the_head_took(images, kind):
    layers = [keras.layers.Dense(6), PEDCCDense(5, return_features=False)]
    part = embedder(kind([keras.Input((8,)), *layers]))
    expected = ops.convert_to_numpy(layers[0](images))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(called(part, images), expected, atol=1e-6)
    assert part.count_params() == layers[0].count_params()


def test_embedder_of_a_sequential_model_with_features(images):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), PEDCCDense(5)])
    expected = called(model, images)["features"]
    found = called(embedder(model), images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_of_a_head_called_by_keyword(images):
    inputs = keras.Input((8,))
    model = PEDCCModel(inputs, PEDCCDense(5)(inputs=keras.layers.Dense(6)(inputs)))
    assert not of_this_package(embedder(model))


def test_embedder_takes_the_output_named_features_of_a_model_inside(images):
    inputs = keras.Input((8,))
    early = keras.layers.Dense(4)(inputs)
    logits = PEDCCDense(5, return_features=False)(keras.layers.Dense(6)(early))
    inner = keras.Model(inputs, {"early": early, "logits": logits})
    made = inner(inputs)
    outputs = {"features": made["early"], "logits": made["logits"]}
    outer = keras.Model(inputs, outputs)
    assert called(embedder(outer), images).shape == (20, 4)


def test_embedder_leaves_the_model_as_it_was(images):
    model = made()
    config, weights = model.get_config(), [w.path for w in model.weights]
    embedder(model)
    assert model.get_config() == config
    assert [w.path for w in model.weights] == weights


def test_embedder_shares_its_weights(images):
    model = made()
    part = embedder(model)
    before = called(part, images)
    model.fit(images, LABELS, verbose=0)
    after = called(part, images)
    assert np.abs(after - before).max() > 1e-3
    expected = called(model, images)["features"]
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_embedder_of_a_shared_head_takes_its_own_branch(images):
    head, inputs = PEDCCDense(5), keras.Input((8,))
    models = [PEDCCModel(inputs, head(keras.layers.Dense(6)(inputs))) for _ in "ab"]
    for model in models:
        expected = called(model, images)["features"]
        found = called(embedder(model), images)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_of_a_model_around_a_model(images):
    inner, inputs = made(compiled=False), keras.Input((8,))
    outer = PEDCCModel(inputs, inner(inputs * 2.0))
    expected = called(outer, images)["features"]
    part = embedder(outer)
    np.testing.assert_allclose(called(part, images), expected, atol=1e-6)
    inside = [each for each in part.layers if isinstance(each, keras.Model)]
    assert not [name for each in (part, *inside) for name in of_this_package(each)]


def test_embedder_takes_inputs_by_name(images):
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    hidden = keras.layers.Dense(6)(inputs["a"]) + keras.layers.Dense(6)(inputs["b"])
    model = PEDCCModel(inputs, PEDCCDense(5)(hidden))
    given = {"a": images, "b": images[::-1].copy()}
    expected = called(model, given)["features"]
    found = called(embedder(model), given)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_makes_features_of_unit_length(images):
    inputs = keras.Input((8,))
    features = keras.layers.Dense(6)(inputs)
    model = keras.Model(inputs, {"features": features})
    found = embedder(model).predict(images, verbose=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_embedder_of_a_model_with_layers_of_any_name(images):
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(6, name="features")(inputs)
    norm = keras.layers.UnitNormalization(name="unit_normalization")(hidden)
    model = PEDCCModel(inputs, PEDCCDense(5, name="embedder")(norm))
    assert embedder(model).predict(images, verbose=0).shape == (20, 6)


def test_embedder_is_float32_under_mixed_precision(images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    found = embedder(made()).predict(images, verbose=0)
    assert found.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_embedder_survives_a_round_trip(images, tmp_path):
    part = embedder(made(), name="faces")
    part.save(tmp_path / "faces.keras")
    loaded = keras.saving.load_model(tmp_path / "faces.keras")
    assert loaded.name == "faces"
    assert not of_this_package(loaded)
    found = loaded.predict(images, verbose=0)
    assert np.array_equal(found, part.predict(images, verbose=0))


def test_embedder_of_a_loaded_model(images, tmp_path):
    model = made()
    model.save(tmp_path / "model.keras")
    found = embedder(keras.saving.load_model(tmp_path / "model.keras"))
    assert np.array_equal(called(found, images), called(embedder(model), images))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.head = keras.layers.Dense(6), PEDCCDense(5)

    def call(self, inputs):
        return self.head(self.dense(inputs))


@pytest.mark.parametrize(
    "model",
    [Subclassed(), keras.Sequential([keras.layers.Dense(6), PEDCCDense(5)])],
    ids=["subclassed", "not built"],
)
def test_embedder_says_what_to_pass_for_a_model_without_a_graph(images, model):
    with pytest.raises(ValueError, match=r"Pass keras.Model\(x, model\(x\)\), with x"):
        embedder(model)
    x = keras.Input((8,))
    found = called(embedder(keras.Model(x, model(x))), images)
    expected = called(model, images)["features"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_says_what_to_pass_for_a_model_without_features(images):
    dense, head = keras.layers.Dense(6), PEDCCDense(5, return_features=False)
    scale = keras.layers.Rescaling(15.0)
    model = keras.Sequential([keras.Input((8,)), dense, head, scale])
    with pytest.raises(
        ValueError, match=r"without names, from 0 heads\. Pass keras.Model"
    ):
        embedder(model)
    features = {"features": model.get_layer(dense.name).output}
    part = embedder(keras.Model(model.inputs, features))
    expected = ops.convert_to_numpy(dense(images))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(called(part, images), expected, atol=1e-6)


def test_embedder_refuses_models_without_features():
    inputs = keras.Input((8,))
    heads = [PEDCCDense(5, return_features=False) for _ in "ab"]
    two = {head.name: head(keras.layers.Dense(6)(inputs)) for head in heads}
    with pytest.raises(ValueError, match=r"outputs \['pedcc.*'\], from 2 heads"):
        embedder(keras.Model(inputs, two))
    with pytest.raises(ValueError, match=r"model='a path' \(type str\)\. Pass"):
        embedder("a path")


def test_embed_takes_the_mirror_image_too(rng):
    images = rng.uniform(0, 1, (7, 4, 6, 3)).astype("float32")
    part = embedder(made(shape=(4, 6, 3)))
    plain = embed(part, images, batch_size=3)
    np.testing.assert_allclose(plain, called(part, images), atol=1e-6)
    both = plain + called(part, images[:, :, ::-1].copy())
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    found = embed(part, images, flip=True)
    np.testing.assert_allclose(found, both, atol=1e-6)


def test_embed_mirrors_the_last_axis_where_channels_come_first(rng, monkeypatch):
    monkeypatch.setattr(
        keras.config, "image_data_format", lambda: "channels_first", raising=True
    )
    images = rng.uniform(0, 1, (5, 3, 4, 6)).astype("float32")
    part = embedder(made(shape=(3, 4, 6)))
    both = called(part, images) + called(part, images[..., ::-1].copy())
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(part, images, flip=True), both, atol=1e-6)


def test_embed_of_features_that_cancel_is_nan():
    inputs = keras.Input((1, 2, 1))
    outputs = keras.layers.Flatten()(inputs)
    odd = keras.Model(inputs, outputs - ops.flip(outputs, axis=1))
    found = embed(odd, np.array([[1.0, 3.0], [2.0, 5.0]])[:, None, :, None], flip=True)
    assert np.isnan(found).all()


def test_embed_refuses_models_with_a_head(images):
    with pytest.raises(ValueError, match=r"one array of features.*gives a dict"):
        embed(made(), images)


def test_embed_refuses_to_flip_what_is_no_image(images):
    part = embedder(made())
    with pytest.raises(ValueError, match=r"four axes.*images.shape=\(20, 8\)"):
        embed(part, images, flip=True)
    with pytest.raises(ValueError, match=r"one array.*list, images.shape=None"):
        embed(part, [np.ones((20, 4, 6, 3))], flip=True)


def test_embed_flips_tensors_and_no_images_at_all(rng):
    images = rng.uniform(0, 1, (5, 4, 6, 3)).astype("float32")
    part = embedder(made(shape=(4, 6, 3), compiled=False))
    found = embed(part, ops.convert_to_tensor(images), flip=True)
    np.testing.assert_array_equal(found, embed(part, images, flip=True))
    assert embed(part, images[:0], flip=True).shape == (0, 6)


def test_callback_logs_what_the_functions_say(rng):
    images = rng.uniform(0, 1, (20, 4, 6, 3)).astype("float32")
    model = made(shape=(4, 6, 3))
    verify = VerificationCallback(images, PAIRS, SAME, folds=5, flip=True, name="faces")
    history = model.fit(images, LABELS, epochs=2, callbacks=[verify], verbose=0).history
    features = embed(embedder(model), images, flip=True)
    report = verification_report(SAME, pair_scores(features, pairs=PAIRS), folds=5)
    for key in ("accuracy", "auc", "eer"):
        assert history[f"val_faces_{key}"][-1] == pytest.approx(report[key], abs=1e-6)
        assert len(history[f"val_faces_{key}"]) == 2


def test_callback_does_not_change_training(images):
    runs = []
    for callbacks in ([], [VerificationCallback(images, PAIRS, SAME, folds=5)]):
        draw_alike(1)
        model = made()
        finetune = FinetuneCallback(epoch=1)
        model.fit(images, LABELS, epochs=3, callbacks=[*callbacks, finetune], verbose=0)
        runs.append(model.get_weights())
    for first, second in zip(*runs, strict=True):
        # PyTorch's sums are not the same to the last bit from run to run.
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


def test_callback_embeds_each_image_once(images):
    verify = VerificationCallback(
        images, [[3, 5], [5, 3], [3, 12], [12, 5]], [1, 0, 1, 0], folds=2
    )
    assert np.array_equal(verify.images, images[[3, 5, 12]])
    assert verify.pairs.tolist() == [[0, 1], [1, 0], [0, 2], [2, 1]]


def test_checkpoint_after_the_callback_keeps_the_best_epoch(images, tmp_path):
    model = made()
    verify = VerificationCallback(images, PAIRS, SAME, folds=5)
    best = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        best, monitor="val_verification_auc", mode="max", save_best_only=True
    )
    every = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}-{val_verification_accuracy:.4f}.keras",
        monitor="val_verification_accuracy",
        mode="max",
    )
    callbacks = [verify, checkpoint, every]
    history = model.fit(images, LABELS, epochs=2, callbacks=callbacks, verbose=0)
    logs = history.history
    features = embedder(keras.saving.load_model(best)).predict(images, verbose=0)
    report = verification_report(SAME, pair_scores(features, pairs=PAIRS), folds=5)
    assert report["auc"] == pytest.approx(max(logs["val_verification_auc"]), abs=1e-6)
    for epoch, accuracy in enumerate(logs["val_verification_accuracy"], 1):
        assert (tmp_path / f"{epoch}-{accuracy:.4f}.keras").exists()


def test_callback_logs_nan_when_features_are(images):
    model = made()
    model.layers[1].kernel.assign(ops.full((8, 16), np.nan))
    verify = VerificationCallback(images, PAIRS, SAME, folds=5)
    with pytest.warns(UserWarning, match="loss=nan in epoch 1"):
        logs = model.fit(images, LABELS, callbacks=[verify], verbose=0).history
    assert np.isnan(logs["val_verification_accuracy"][0])
    assert np.isnan(logs["val_verification_eer"][0])


def test_callback_refuses_arguments(images):
    with pytest.raises(ValueError, match=r"the 20 rows.*pairs\[0\]=\[0, 20\]"):
        VerificationCallback(images, [[0, 20], [0, 1]], [1, 0])
    with pytest.raises(ValueError, match=r"for each pair.*same.shape=\(2,\)"):
        VerificationCallback(images, PAIRS, [1, 0])
    with pytest.raises(ValueError, match="10 of 10 pairs of one class"):
        VerificationCallback(images, PAIRS, np.ones(10))
    with pytest.raises(ValueError, match=r"at most the number of pairs, 10.*folds=11"):
        VerificationCallback(images, PAIRS, SAME, folds=11)
    with pytest.raises(TypeError, match="`batch_size` must be a whole number"):
        VerificationCallback(images, PAIRS, SAME, folds=5, batch_size=2.5)
    with pytest.raises(ValueError, match="four axes"):
        VerificationCallback(images, PAIRS, SAME, folds=5, flip=True)
    with pytest.raises(ValueError, match=r"shapes \[\(20, 8\), \(19, 8\)\]. Pass"):
        VerificationCallback([images, images[1:]], PAIRS, SAME, folds=5)
    with pytest.raises(ValueError, match=r"generator without a shape\. Pass"):
        VerificationCallback((x for x in images), PAIRS, SAME, folds=5)


def after_an_epoch(model, *args, **kwargs):
    verify, logs = VerificationCallback(*args, **kwargs), {}
    verify.set_model(model)
    verify.on_epoch_end(0, logs)
    return logs


def test_callback_takes_models_of_several_inputs(images):
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    hidden = keras.layers.Dense(6)(inputs["a"]) - keras.layers.Dense(6)(inputs["b"])
    outputs = PEDCCDense(5)(hidden)
    named = {"a": images, "b": images[::-1].copy()}
    for model, given in (
        (PEDCCModel(inputs, outputs), named),
        (PEDCCModel([*inputs.values()], outputs), [*named.values()]),
    ):
        logs = after_an_epoch(model, given, PAIRS[:-1], SAME[:-1], folds=3)
        scores = pair_scores(called(model, given)["features"], pairs=PAIRS[:-1])
        report = verification_report(SAME[:-1], scores, folds=3)
        assert logs["val_verification_auc"] == pytest.approx(report["auc"], abs=1e-6)


def test_callback_takes_sequential_models_of_logits_alone(images):
    head = PEDCCDense(5, return_features=False)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), head])
    logs = after_an_epoch(model, images, PAIRS, SAME, folds=5)
    assert 0 <= logs["val_verification_accuracy"] <= 1


def test_callback_refuses_models_without_features(images):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    model.compile("sgd", PEDCCLoss())
    verify = VerificationCallback(images, PAIRS, SAME, folds=5)
    with pytest.raises(ValueError, match=r"without names, from 0 heads"):
        model.fit(images, LABELS, callbacks=[verify], verbose=0)


def test_embedder_without_centroids_is_saved(images, tmp_path):
    model = embedder(made(CenterDense(5), compiled=False))
    assert model.centroid_fingerprint is None
    model.save(tmp_path / "embedder.keras")
    loaded = keras.saving.load_model(tmp_path / "embedder.keras")
    np.testing.assert_array_equal(called(loaded, images), called(model, images))
