import keras

from keras_pedcc.common.sublayers import layers_of


class Block(keras.layers.Layer):
    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self._first = first
        self.others = {"list": [second], "set": {first}, "number": 3}


def dense(name):
    return keras.layers.Dense(2, name=name)


def test_layers_are_found_in_models_and_in_containers_of_layers():
    inputs = keras.Input((2,))
    inner = keras.Sequential([keras.Input((2,)), dense("c")], name="inner")
    model = keras.Model(inputs, inner(inputs))
    model.block = Block(dense("a"), dense("b"), name="block")
    names = [layer.name for layer in layers_of(model)]
    assert {"inner", "block", "a", "b", "c"} <= set(names)
    assert names.index("block") < names.index("a")


def test_layers_are_found_once():
    inputs, shared = keras.Input((2,)), dense("shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    model.again = [shared, model]
    found = layers_of(model)
    assert [layer is shared for layer in found].count(True) == 1
    assert all(layer is not model for layer in found)
