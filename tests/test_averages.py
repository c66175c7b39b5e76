"Weights averaged over steps, and between the beginning and the end of a second stage."

import keras
import numpy as np
import pytest
from triplet_fashion.base_network import interpolate_weights
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.runs.averages import AveragedWeights
from triplet_fashion.training import Recipe, fit

HOW = dict(size=32, steps=3, P=4, K=2, hidden=(), out_dims=8, verbose=0, monitor=None)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    catalog = draw_catalog(tmp_path_factory.mktemp('photos') / 'drawn', 12, 4, size=(32, 32))
    return catalog.split(0.34, seed=0)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp('backbone') / 'mine.keras'
    convolutions = [layers.Conv2D(n, 3, strides=2, activation='relu') for n in (6, 8, 10)]
    parts = [keras.Input((32, 32, 3)), *convolutions, layers.GlobalAveragePooling2D()]
    keras.Sequential(parts).save(path)
    return str(path)


class Steps(keras.callbacks.Callback):
    "The weights that learn, after each step and at the end of each epoch."

    def on_train_begin(self, logs=None):
        self.steps, self.epochs = [], []
        self.before = self.now()

    def now(self):
        return [np.array(w) for w in self.model.trainable_weights]

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.now())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.now())


def averaged(steps, momentum):
    "Average by the formula: the first step counts in full."
    found = steps[0]
    for weights in steps[1:]:
        found = [momentum * a + (1 - momentum) * w for a, w in zip(found, weights)]
    return found


def same(a, b, **tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, **tolerance or dict(rtol=0, atol=0))


def test_a_run_ends_each_epoch_with_the_averages(photos):
    steps = Steps()
    fit(photos[0], recipe='scratch', epochs=3, ema=0.6, callbacks=steps, **HOW)
    for epoch in 1, 2, 3:
        same(
            steps.epochs[epoch - 1],
            averaged(steps.steps[: 3 * epoch], 0.6),
            rtol=1e-4,
            atol=1e-6,
        )
    same(steps.now(), steps.epochs[-1])


def test_averages_leave_the_steps_as_they_are(photos):
    plain, with_average = Steps(), Steps()
    fit(photos[0], recipe='scratch', epochs=2, callbacks=plain, **HOW)
    fit(photos[0], recipe='scratch', epochs=2, ema=0.6, callbacks=with_average, **HOW)
    for a, b in zip(plain.steps, with_average.steps):
        same(a, b)


def test_what_is_watched_is_the_network_with_the_averages(photos):
    how = dict(recipe='scratch', epochs=2, ema=0.9, **HOW)
    run = fit(*photos, **how)
    found = retrieval_metrics(Encoder(run.net).encode(photos[1]), photos[1].labels)
    assert run.history['val_MAP@R'][-1] == pytest.approx(found['MAP@R'], abs=1e-6)
    best = fit(*photos, restore_best=True, **how)
    found = retrieval_metrics(Encoder(best.net).encode(photos[1]), photos[1].labels)
    assert max(best.history['val_MAP@R']) == pytest.approx(found['MAP@R'], abs=1e-6)


def test_a_stopped_training_ends_with_the_averages():
    ones = np.ones((4, 1))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), 'mse')
    steps = Steps()
    stop = keras.callbacks.EarlyStopping('loss', patience=0, min_delta=9)
    model.fit(ones, ones, epochs=5, verbose=0, callbacks=[AveragedWeights(), steps, stop])
    assert len(steps.epochs) == 2
    same(steps.now(), averaged(steps.steps, 0.5), rtol=1e-5)


def test_the_second_stage_ends_between_its_beginning_and_its_end(photos, backbone):
    how = dict(recipe='deep', backbone=backbone, unfreeze=0.5, epochs=1, tune_epochs=1, copies=2)
    how |= dict(callbacks=(steps := Steps()), feature_cache=False, **HOW)
    embedded = {}
    for share in None, 0.0, 0.25, 1.0:
        run = fit(photos[0], tune_share=share, **how)
        embedded[share] = Encoder(run.net).encode(photos[1])
        before, after = steps.before, steps.steps[-1]
        share = 1.0 if share is None else share
        between = [(1 - share) * a + share * b for a, b in zip(before, after)]
        same(steps.now(), between, rtol=1e-5, atol=1e-7)
        assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(before, after))
    np.testing.assert_array_equal(embedded[None], embedded[1.0])
    assert np.abs(embedded[0.0] - embedded[1.0]).max() > 1e-4


def test_a_complete_run_with_a_share_gives_the_same_network_again(photos, backbone, tmp_path):
    how = dict(recipe='deep', backbone=backbone, unfreeze=0.5, epochs=1, tune_epochs=1, copies=2)
    how |= dict(run_dir=tmp_path, tune_share=0.5, ema=0.5, **HOW)
    a, b = (fit(photos[0], **how).net.get_weights() for _ in range(2))
    same(a, b)
    with pytest.raises(ValueError, match='tune_share was 0.5, now 0.6'):
        fit(photos[0], **how | dict(tune_share=0.6))


def test_weights_between_are_for_one_network_and_a_share():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    before = [np.zeros_like(w) for w in net.get_weights()]
    after = net.get_weights()
    interpolate_weights(net, before, 0.5)
    same(net.get_weights()[:2], [w / 2 for w in after[:2]])
    same(net.get_weights()[2:], after[2:])  # the state of random numbers is no weight
    with pytest.raises(ValueError, match='share is 2, not between 0 and 1'):
        interpolate_weights(net, before, 2)
    with pytest.raises(ValueError, match='weights of another network'):
        interpolate_weights(net, before[:1])


@pytest.mark.parametrize('ema', [0, 1, 1.5, True, 'much'])
def test_an_average_of_nothing_is_an_error(ema):
    with pytest.raises(ValueError, match='ema=.* above 0, below 1'):
        Recipe.named('scratch', ema=ema)


def test_a_share_without_a_second_stage_has_no_effect():
    with pytest.raises(ValueError, match='tune_share=0.5 has no effect'):
        Recipe.named('strong', backbone='ResNet50', tune_share=0.5)
