import keras
import numpy as np
import pytest
from keras import ops

from keras_pedcc import (
    CenterDense,
    FinetuneCallback,
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
        model.compile(keras.optimizers.SGD(0.05), PEDCCLoss(), metrics=["accuracy"])
    return model


@pytest.fixture
def images(rng):
    """Twenty images; the last ten look like the first ten."""
    alike = np.tile(rng.normal(size=(10, 8)), (2, 1))
    return (alike + rng.normal(size=(20, 8)) / 3).astype("float32")


LABELS = np.arange(20) % 5


@pytest.mark.parametrize(
    "head", [PEDCCDense(5), ProductDense(5), CenterDense(5)], ids=lambda head: head.name
)
def test_embedder_gives_the_features_without_the_head(images, head):
    model = made(head)
    part = embedder(model)
    expected = model.predict(images, verbose=0)["features"]
    np.testing.assert_allclose(part.predict(images, verbose=0), expected, atol=1e-6)
    assert [w.path for w in part.weights] == [w.path for w in model.weights[:4]]


def test_embedder_shares_its_weights(images):
    model = made()
    part = embedder(model)
    before = part.predict(images, verbose=0)
    model.fit(images, LABELS, verbose=0)
    after = part.predict(images, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    expected = model.predict(images, verbose=0)["features"]
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_embedder_of_a_shared_head_takes_its_own_branch(images):
    head, inputs = PEDCCDense(5), keras.Input((8,))
    models = [PEDCCModel(inputs, head(keras.layers.Dense(6)(inputs))) for _ in "ab"]
    for model in models:
        expected = model.predict(images, verbose=0)["features"]
        found = embedder(model).predict(images, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_of_a_model_around_a_model(images):
    inner, inputs = made(compiled=False), keras.Input((8,))
    outer = PEDCCModel(inputs, inner(inputs * 2.0))
    expected = outer.predict(images, verbose=0)["features"]
    found = embedder(outer).predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embedder_takes_inputs_by_name(images):
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    hidden = keras.layers.Dense(6)(inputs["a"]) + keras.layers.Dense(6)(inputs["b"])
    model = PEDCCModel(inputs, PEDCCDense(5)(hidden))
    given = {"a": images, "b": images[::-1].copy()}
    expected = model.predict(given, verbose=0)["features"]
    found = embedder(model).predict(given, verbose=0)
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
    assert not [x for x in loaded.layers if type(x).__module__.startswith("keras_pedc")]
    found = loaded.predict(images, verbose=0)
    assert np.array_equal(found, part.predict(images, verbose=0))


def test_embedder_of_a_loaded_model(images, tmp_path):
    model = made()
    model.save(tmp_path / "model.keras")
    found = embedder(keras.saving.load_model(tmp_path / "model.keras"))
    expected = embedder(model).predict(images, verbose=0)
    assert np.array_equal(found.predict(images, verbose=0), expected)


def test_embedder_refuses_models_without_features():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((8,))
    plain = keras.Model(inputs, PEDCCDense(5, return_features=False)(inputs))
    named = keras.Model(inputs, {"logits": plain.output})
    sequential = keras.Sequential([inputs, keras.layers.Dense(2)])
    for model in (plain, Subclassed(), sequential, "a path"):
        with pytest.raises(ValueError, match='"features" among them'):
            embedder(model)
    with pytest.raises(ValueError, match=r"outputs \['logits'\]\. Build it as"):
        embedder(named)


def test_embed_takes_the_mirror_image_too(rng):
    images = rng.uniform(0, 1, (7, 4, 6, 3)).astype("float32")
    part = embedder(made(shape=(4, 6, 3)))
    plain = embed(part, images, batch_size=3)
    np.testing.assert_allclose(plain, part.predict(images, verbose=0), atol=1e-6)
    both = plain + part.predict(images[:, :, ::-1].copy(), verbose=0)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    found = embed(part, images, flip=True)
    np.testing.assert_allclose(found, both, atol=1e-6)


def test_embed_mirrors_the_last_axis_where_channels_come_first(rng, monkeypatch):
    monkeypatch.setattr(
        keras.config, "image_data_format", lambda: "channels_first", raising=True
    )
    images = rng.uniform(0, 1, (5, 3, 4, 6)).astype("float32")
    part = embedder(made(shape=(3, 4, 6)))
    both = part.predict(images, verbose=0)
    both = both + part.predict(images[..., ::-1].copy(), verbose=0)
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
    with pytest.raises(ValueError, match=r"four axes.*images.shape=\(20, 8\)"):
        embed(embedder(made()), images, flip=True)


@pytest.mark.parametrize("flip", [False, True])
def test_callback_logs_what_the_functions_say(rng, flip):
    images = rng.uniform(0, 1, (20, 4, 6, 3)).astype("float32")
    model = made(shape=(4, 6, 3))
    verify = VerificationCallback(images, PAIRS, SAME, folds=5, flip=flip, name="faces")
    history = model.fit(images, LABELS, epochs=2, callbacks=[verify], verbose=0).history
    features = embed(embedder(model), images, flip=flip)
    report = verification_report(pair_scores(features, pairs=PAIRS), SAME, folds=5)
    for key in ("accuracy", "auc", "eer"):
        assert history[f"val_faces_{key}"][-1] == pytest.approx(report[key], abs=1e-6)
        assert len(history[f"val_faces_{key}"]) == 2


def test_callback_does_not_change_training(images):
    runs = []
    for callbacks in ([], [VerificationCallback(images, PAIRS, SAME, folds=5)]):
        keras.utils.set_random_seed(1)
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
    history = model.fit(images, LABELS, epochs=3, callbacks=callbacks, verbose=0)
    logs = history.history
    features = embedder(keras.saving.load_model(best)).predict(images, verbose=0)
    report = verification_report(pair_scores(features, pairs=PAIRS), SAME, folds=5)
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


def test_callback_refuses_models_without_features(images):
    head = PEDCCDense(5, return_features=False)
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("sgd", PEDCCLoss())
    verify = VerificationCallback(images, PAIRS, SAME, folds=5)
    with pytest.raises(ValueError, match='"features" among them'):
        model.fit(images, LABELS, callbacks=[verify], verbose=0)
