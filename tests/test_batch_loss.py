"What Keras asks of a loss, asked of `BatchLoss` and a subclass of a user's own; `PairMask`."

from pathlib import Path
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from triplet_fashion.contrastive import CrossBatchMemory, SupConLoss
from triplet_fashion.loss import TripletLoss, loss_variables
from triplet_fashion.mining import (
    BatchLoss,
    PairMask,
    pairwise_distances,
    scale_to_counted,
    with_memory,
)

ROOT = Path(__file__).resolve().parents[1]
IDS = np.array([0, 0, 1])
LINE = np.array([[0.0], [0.5], [0.75]], 'float32')
BY_HAND = (
    np.array([0.5**2 + 0.25**2, 0.5**2 + 0.75**2, 0.25**2 + 0.75**2]) / 3
)  # positive at .5; negatives at .75, .25


@keras.saving.register_keras_serializable(package='test_batch_loss')
class Contrastive(BatchLoss):
    "A user's own loss (Hadsell 2006); the base class is all it knows of this package."

    def __init__(self, margin=1.0, **kwargs):
        super().__init__(**kwargs)
        self.margin = margin

    def compute(self, embeddings, pairs, memory=None):
        d = pairwise_distances(embeddings, with_memory(embeddings, memory), squared=False)
        pull = tf.where(pairs.positive, d**2, 0)
        push = tf.where(pairs.negative, tf.nn.relu(self.margin - d) ** 2, 0)
        return tf.reduce_mean(pull + push, axis=1)

    def get_config(self):
        return {**super().get_config(), 'margin': self.margin}


class Counting(BatchLoss):
    "A loss with a variable of its own, made for the width of the embeddings."

    mean = None

    def build(self, width):
        if self.mean is None:
            with tf.init_scope():
                self.mean = tf.Variable(tf.zeros(width), trainable=False, name='mean')

    def compute(self, embeddings, pairs, memory=None):
        self.build(embeddings.shape[-1])
        self.mean.assign(tf.reduce_mean(embeddings, axis=0))
        return tf.reduce_sum((embeddings - tf.stop_gradient(self.mean)) ** 2, axis=1)


# ---- the pairs


def test_a_pair_mask_by_hand():
    pairs = PairMask.from_labels(['a', 'a', 'b', None])
    assert pairs.positive.numpy().astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0] * 4,
        [0] * 4,
    ]
    assert pairs.negative.numpy().astype(int).tolist() == [
        [0, 0, 1, 0],
        [0, 0, 1, 0],
        [1, 1, 0, 0],
        [0] * 4,
    ]
    assert pairs.valid.numpy().tolist() == [True, True, False, False]


def test_remembered_labels_are_more_columns():
    pairs = PairMask.from_labels([0, 1], [1, -1, 0])
    assert pairs.positive.numpy().astype(int).tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert pairs.negative.numpy().astype(int).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    'labels',
    [[4006381333931, 4006381333931, 4006381333931 + 2**32], [2**53, 2**53, 2**53 + 1], list('aab')],
    ids=['EAN', 'above 2**53', 'text'],
)
def test_labels_are_never_rounded(labels):
    for a, b in zip(PairMask.from_labels(labels), PairMask.from_labels(IDS)):
        np.testing.assert_array_equal(a, b)


# ---- the contract


def test_call_receives_labels_and_embeddings():
    seen = []

    class Looking(Contrastive):
        def call(self, y_true, y_pred):
            seen.append((y_true, y_pred))
            return super().call(y_true, y_pred)

    Looking()([2**40, 2**40, 7], LINE.astype('float16'))
    ((labels, embeddings),) = seen
    assert labels.dtype == 'int64' and labels.numpy().tolist() == [2**40, 2**40, 7]
    assert embeddings.dtype == 'float32' and embeddings.shape == (3, 1)


def test_call_gives_a_value_an_anchor():
    np.testing.assert_allclose(Contrastive().call(IDS, tf.constant(LINE)), BY_HAND, rtol=1e-6)


@pytest.mark.parametrize(
    'reduction, expect',
    [
        (None, BY_HAND),
        ('none', BY_HAND),
        ('sum', BY_HAND.sum()),
        ('mean', BY_HAND.mean()),
        ('sum_over_batch_size', BY_HAND.mean()),
        ('mean_with_sample_weight', BY_HAND.mean()),
    ],
)
def test_reductions(reduction, expect):
    np.testing.assert_allclose(Contrastive(reduction=reduction)(IDS, LINE), expect, rtol=1e-6)


@pytest.mark.parametrize(
    'reduction', [None, 'sum', 'mean', 'sum_over_batch_size', 'mean_with_sample_weight']
)
@pytest.mark.parametrize('masked', [False, True])
def test_weights_and_masks_as_a_loss_of_keras_has_them(reduction, masked):
    "The referee is Keras' absolute error whose values are the same."
    weights, rows = np.array([1.0, 0.0, 3.0]), tf.constant(LINE)
    own = tf.constant(BY_HAND[:, None], 'float32')
    if masked:
        rows._keras_mask = own._keras_mask = tf.constant([True, True, False])
    expect = keras.losses.MeanAbsoluteError(reduction=reduction)(
        tf.zeros((3, 1)), own, sample_weight=weights
    )
    value = Contrastive(reduction=reduction)(IDS, rows, sample_weight=weights)
    np.testing.assert_allclose(value, expect, rtol=1e-6)


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16', 'float64', 'mixed_float16'])
def test_dtypes(dtype):
    loss = Contrastive(dtype=dtype)
    value = loss(IDS, LINE)
    assert value.dtype == {None: 'float32', 'mixed_float16': 'float16'}.get(dtype, dtype)
    assert float(value) == pytest.approx(
        BY_HAND.mean(), rel=1e-2 if value.dtype == 'bfloat16' else 1e-3
    )
    assert Contrastive.from_config(loss.get_config())(IDS, LINE).dtype == value.dtype


@pytest.mark.parametrize(
    'make',
    [
        lambda: Contrastive(0.3, reduction='sum', name='mine', dtype='float16'),
        lambda: CrossBatchMemory(Contrastive(0.3, reduction=None), 7),
    ],
)
def test_config_round_trip(make):
    loss = make()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(IDS, LINE), loss(IDS, LINE))


def test_names_under_which_losses_are_registered():
    for loss in (SupConLoss(), CrossBatchMemory(SupConLoss())):
        assert (
            keras.saving.get_registered_name(type(loss)) == f'triplet_fashion>{type(loss).__name__}'
        )


def test_a_name_is_made_where_none_is_given():
    assert Contrastive().name.startswith('contrastive')


@pytest.mark.parametrize(
    'make',
    [Contrastive, lambda **kw: CrossBatchMemory(Contrastive(**kw), 5)],
    ids=['alone', 'with memory'],
)
def test_an_embedding_that_is_not_finite_gives_nan_for_its_anchor(make):
    x = np.random.default_rng(0).random((3, 2)).astype('float32')
    x[1, 0] = np.inf
    assert np.isnan(make(reduction=None)(IDS, x)[1])


@pytest.mark.parametrize(
    'values, word',
    [(lambda e: tf.reduce_mean(e), 'one value an anchor'), (lambda e: e, r'\(3, 1\)')],
)
def test_values_that_are_not_one_an_anchor_are_refused(values, word):
    class Wrong(BatchLoss):
        def compute(self, embeddings, pairs, memory=None):
            return values(embeddings)

    with pytest.raises(ValueError, match='compute returned values of shape') as e:
        Wrong()(IDS, LINE)
    assert re.search('value an anchor', str(e.value)) or re.search(word, str(e.value))


def test_a_subclass_without_compute_says_so():
    class Nothing(BatchLoss):
        pass

    with pytest.raises(NotImplementedError, match='Nothing needs a method compute'):
        Nothing()(IDS, LINE)


@pytest.mark.parametrize(
    'labels, x, word',
    [
        (None, LINE, 'needs the labels'),
        ([0, 1], LINE, '2 labels for 3 embeddings'),
        (IDS, LINE[None], 'must have shape'),
    ],
)
def test_batches_that_mean_nothing(labels, x, word):
    with pytest.raises(ValueError, match=word):
        Contrastive()(labels, x)


def test_scaled_values_have_the_mean_of_what_counts():
    values = tf.constant([2.0, 4.0, 0.0, 0.0])
    assert float(tf.reduce_mean(scale_to_counted(values, [True, True, False, False]))) == 3
    assert float(tf.reduce_mean(scale_to_counted(values, [2, 1, 0, 0]))) == 2
    assert scale_to_counted(tf.zeros(3), [False] * 3).numpy().tolist() == [0] * 3


# ---- in training


def data():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(6), 4)
    return (rng.normal(size=(6, 5))[ids] + 0.3 * rng.normal(size=(24, 5))).astype('float32'), ids


@pytest.mark.parametrize('xla', [False, True], ids=['graph', 'xla'])
@pytest.mark.parametrize(
    'make', [Contrastive, lambda: CrossBatchMemory(Contrastive(), 16)], ids=['alone', 'with memory']
)
def test_a_loss_of_your_own_trains_and_is_saved(make, xla, tmp_path):
    keras.utils.set_random_seed(0)
    x, ids = data()
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    net.compile(keras.optimizers.Adam(0.02), make(), jit_compile=xla)
    history = net.fit(x, ids, batch_size=24, epochs=12, verbose=0).history['loss']
    assert history[-1] < 0.9 * history[1]
    net.save(tmp_path / 'net.keras')
    again = keras.models.load_model(tmp_path / 'net.keras')
    assert again.loss.get_config() == net.loss.get_config()


def test_a_memory_around_a_loss_of_your_own_is_a_larger_batch():
    x, ids = data()
    memory = CrossBatchMemory(Contrastive(reduction=None), 100)
    with tf.GradientTape() as tape:
        first = tf.constant(x[12:])
        tape.watch(first)
        value = memory(ids[12:], first)
    tape.gradient(value, first)
    both = Contrastive(reduction=None)(np.r_[ids[:12], ids[12:]], np.r_[x[:12], x[12:]])
    columns = 12 + 100  # the mean is over places of the memory that are not filled too
    np.testing.assert_allclose(memory(ids[:12], x[:12]) * columns, both[:12] * 24, rtol=1e-5)


# ---- what a loss keeps


def test_most_losses_keep_nothing():
    for loss in (Contrastive(), SupConLoss(), TripletLoss(), keras.losses.Hinge(), 'mse', None):
        assert loss_variables(loss) == []


def test_variables_are_made_at_the_first_batch_or_by_build():
    for make, shapes in (
        (lambda: CrossBatchMemory(SupConLoss(), 7), [(7, 1), (7,), ()]),
        (Counting, [(1,)]),
        (lambda: CrossBatchMemory(Counting(), 7), [(7, 1), (7,), (), (1,)]),
    ):
        built, called = make(), make()
        assert built.variables == called.variables == []
        built.build(1)
        built.build(1)
        called(IDS, LINE)
        assert (
            [tuple(v.shape) for v in built.variables]
            == [tuple(v.shape) for v in called.variables]
            == shapes
        )
        assert loss_variables(built) == built.variables


def test_a_loss_with_a_variable_trains():
    x, ids = data()
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    loss = Counting()
    net.compile('sgd', loss)
    net.fit(x, ids, batch_size=24, epochs=2, verbose=0)
    assert np.abs(loss.mean).min() > 0


def test_a_memory_is_not_put_around_a_memory():
    with pytest.raises(ValueError, match='CrossBatchMemory is not'):
        CrossBatchMemory(CrossBatchMemory(SupConLoss()))


# ---- the guide


def test_the_loss_in_the_guide_runs():
    "CONTRIBUTING shows how to add a loss: its code, as it stands there."
    text = (
        (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('## How to add a loss', 1)[1]
    )
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    names = {}
    exec(code, names)
    loss = names['ContrastiveLoss'](0.5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.margin == 0.5 and float(again(IDS, LINE)) == float(loss(IDS, LINE)) > 0
