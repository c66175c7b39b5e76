"""Training: recipes, the frozen short cut, continuing, the seed's file names, and what must stop
early."""

import dataclasses, re, shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import keras, numpy as np, pytest
import tensorflow as tf

from triplet_fashion.base_network import backbone_of, base_network, head_of
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import LOSSES_BY_NAME, CrossBatchMemory, SupConLoss
from triplet_fashion.runs.monitor import TrainingWarning
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.mining import BatchTripletLoss
from triplet_fashion.model import compile_triplet, triplet_model
from triplet_fashion.evaluation import (
    BASELINES,
    RetrievalCallback,
    baselines,
    evaluate,
    evaluate_benchmark,
    scoreboard,
)
from triplet_fashion.encoder import Encoder, FeatureCache, encode
from triplet_fashion.evaluation import before_training
from triplet_fashion.learning_rate import find_learning_rate
from triplet_fashion.runs.checkpoints import continue_from
from triplet_fashion.training import EpochWeights, Recipe, fit, plot_history

REFEREES = Path(__file__).parent / 'referees'
SMALL = dict(size=(32, 32), out_dims=16, verbose=0)


def convolutions(norms=False):
    "A backbone of a few layers."
    layers, deep = (
        keras.layers,
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 5, strides=4, activation='relu')],
    )
    for _ in range(4 if norms else 1):
        deep += [layers.Conv2D(4, 3, padding='same', activation='relu')] + [
            layers.BatchNormalization()
        ] * norms
    return keras.Sequential([*deep, layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])


def tiny(trainable=True, **kw):
    "A network that is quick to build and to train."
    return base_network(
        (32, 32, 3), 8, convolutions(), hidden=(), **dict(activation='l2', trainable=trainable) | kw
    )


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    "A file with a small backbone, as one with pretrained weights is given."
    path = tmp_path_factory.mktemp('backbone') / 'mine.keras'
    convolutions(norms=True).save(path)
    return path


def weights(net):
    return [np.asarray(w) for w in net.get_weights()]


@pytest.fixture(scope='module')
def run(drawn):
    return fit(drawn, epochs=4, P=6, **SMALL)


@pytest.fixture(scope='module')
def watched(drawn, tmp_path_factory):
    """A run that watches photos of its own, the photos, and the folder with what Keras' callbacks
    wrote."""
    train, unseen = drawn.split(0.25, seed=1)
    folder = tmp_path_factory.mktemp('watched')
    calls = [keras.callbacks.CSVLogger(folder / 'log.csv')]
    if find_spec('tensorboard'):
        calls.append(keras.callbacks.TensorBoard(folder / 'board'))
    run = fit(train, valid=unseen, epochs=2, steps=2, P=4, callbacks=calls, **SMALL)
    return run, unseen, folder


@pytest.fixture(scope='module')
def short(drawn, tmp_path_factory):
    "A run of two steps, given a folder of photos, and the folder of its checkpoints."
    folder = tmp_path_factory.mktemp('checkpoints')
    run = fit(
        str(drawn.root),
        epochs=2,
        steps=1,
        P=4,
        callbacks=EpochWeights(folder),
        monitor=None,
        **SMALL,
    )
    return run, folder


def test_strong_beats_untrained(drawn, run):
    before, *_ = scoreboard(before_training(run), drawn)
    after, *_ = scoreboard({'trained': run.net}, drawn)
    assert run.history['loss'][-1] < run.history['loss'][0]
    assert after['R@1'] > before['R@1']


def test_before_training_is_where_the_run_began(drawn, run):
    ((name, start),) = before_training(run).items()
    keras.utils.set_random_seed(0)
    net = base_network((32, 32, 3), 16, 'small', None, hidden=(), activation='l2')
    assert name == 'untrained network'
    np.testing.assert_array_equal(start(drawn), encode(drawn, net))
    assert not np.allclose(start(drawn), encode(drawn, run.net), atol=0.01)


def test_same_seed_same_network(drawn):
    a, b = (fit(drawn, epochs=1, P=6, seed=5, **SMALL) for _ in range(2))
    assert a.history == b.history
    for x, y in zip(weights(a.net), weights(b.net)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('name', ['original', 'strong'])
def test_frozen_backbone_learns_only_the_head(drawn, name):
    net = base_network(
        (32, 32, 3),
        16,
        'small',
        None,
        hidden=(32,),
        activation='sigmoid' if name == 'original' else 'l2',
        trainable=False,
    )
    lower, upper = (
        weights(backbone_of(net)),
        weights(net.layers[-2] if name == 'strong' else net.layers[-1]),
    )
    store = FeatureCache()
    fit(
        drawn,
        recipe=name,
        net=net,
        feature_cache=store,
        epochs=2,
        size=(32, 32),
        verbose=0,
        batches='pk' if name == 'strong' else 'triplet',
    )
    for a, b in zip(lower, weights(backbone_of(net))):
        np.testing.assert_array_equal(a, b)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(upper, weights(net.layers[-2] if name == 'strong' else net.layers[-1]))
    )
    assert [len(rows) for rows in store.memory.values()] == [len(drawn)]
    np.testing.assert_allclose(
        Encoder(net, feature_cache=store).encode(drawn), encode(drawn, net), atol=2e-5
    )


def test_seed_recipe_trains_the_three_input_model(drawn):
    run = fit(drawn, recipe='original', epochs=1, steps=2, batch_size=4, hidden=(), **SMALL)
    assert [i.name for i in run.model.inputs] == ['anchor', 'positive', 'negative']
    assert run.model.output_shape == (None, 48)
    assert run.model.optimizer.clipnorm == 5 and float(
        run.model.optimizer.learning_rate
    ) == pytest.approx(1e-4)
    assert type(run.model.loss).__name__ == 'LosslessTripletLoss'


@pytest.mark.parametrize('name', ['original', 'strong'])
def test_a_continued_run_equals_an_uninterrupted_one(drawn, tmp_path, name):
    kw = dict(recipe=name, steps=3, hidden=(), monitor=None, **SMALL) | (
        dict(P=4) if name == 'strong' else dict(batch_size=4)
    )
    whole = fit(drawn, epochs=3, callbacks=EpochWeights(tmp_path / 'a'), **kw)
    first = sorted((tmp_path / 'a').glob('000001-*.weights.h5'))[0]
    rest = fit(drawn, epochs=3, weights_from=first, **kw)
    np.testing.assert_allclose(rest.history['loss'], whole.history['loss'][1:], rtol=1e-6)
    for a, b in zip(weights(rest.net), weights(whole.net)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_checkpoint_names_are_the_seeds(short):
    run, folder = short
    want = [f'{i:06d}-{loss:.4f}.weights.h5' for i, loss in enumerate(run.history['loss'], 1)]
    assert sorted(p.name for p in folder.iterdir()) == want


def test_checkpoints_can_be_limited(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callback = EpochWeights(tmp_path, keep=2)
    callback.set_model(model)
    for e in range(4):
        callback.on_epoch_end(e, {'loss': e + 0.5})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        '000003-2.5000.weights.h5',
        '000004-3.5000.weights.h5',
    ]


@pytest.mark.parametrize('joint', [True, False])
def test_checkpoints_of_keras_2_are_continued(joint):
    """Files really written by Keras 2: a whole three-input model, named as the seed named it, and
    the weights of a base network."""
    want = np.load(REFEREES / 'keras2.npz')
    layers = keras.layers

    def lower():
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(4, 3, strides=2, padding='same', use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
            ]
        )

    net, base = (base_network((8, 8, 3), 6, lower(), hidden=(5,), rescale=None) for _ in range(2))
    assert (
        continue_from(
            compile_triplet(triplet_model(net, joint=joint)), REFEREES / '000001-1.0883.h5'
        )
        == 1
    )
    assert continue_from(base, REFEREES / 'keras2_base.h5') == 0
    for o in (net, base):
        np.testing.assert_allclose(o.predict(want['x'], verbose=0), want['y'], atol=1e-6)


def test_continue_from_names_what_does_not_fit(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    other.save_weights(tmp_path / 'other.weights.h5')
    (tmp_path / 'cut.weights.h5').write_bytes((tmp_path / 'other.weights.h5').read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match='gone.weights.h5'):
        continue_from(model, tmp_path / 'gone.weights.h5')
    with pytest.raises(ValueError, match='other.weights.h5'):
        continue_from(model, tmp_path / 'other.weights.h5')
    with pytest.raises(ValueError, match='cut.weights.h5'):
        continue_from(model, tmp_path / 'cut.weights.h5')


def test_the_history_holds_what_was_watched(watched):
    run, unseen, _ = watched
    signs = {"d+", "d-", "overlap", "rank", "saturated", "gradient"}
    assert signs <= set(run.history) and {len(v) for v in run.history.values()} == {2}
    assert signs <= set(run.history) and set(run.history) - signs - {"active", "stale"} == {
        'loss',
        'val_R@1',
        'val_MAP@R',
        'learning_rate',
    }
    assert run.history['val_R@1'][-1] == pytest.approx(
        retrieval_metrics(encode(unseen, run.net), unseen.labels)['R@1']
    )
    fig = plot_history(run)
    assert [a.get_title() for a in fig.axes] == [
        'loss',
        'retrieval',
        'd+ within, d- between products',
        'learning rate',
    ]
    assert '| loss, last epoch |' in run._repr_markdown_()


def test_the_seed_recipe_watches_the_loss_of_fixed_triplets(drawn):
    train, unseen = drawn.split(0.25, seed=1)
    run = fit(
        train,
        valid=unseen,
        recipe='original',
        epochs=2,
        steps=2,
        batch_size=4,
        hidden=(),
        learning_rate=1e-9,
        **SMALL,
    )
    signs = {"d+", "d-", "overlap", "rank", "saturated", "gradient"}
    assert signs <= set(run.history) and {len(v) for v in run.history.values()} == {2}
    assert signs <= set(run.history) and set(run.history) - signs - {"active", "stale"} == {
        'loss',
        'val_loss',
        'val_R@1',
        'val_MAP@R',
        'learning_rate',
    }
    assert len(plot_history(run).axes[0].get_lines()) >= 2


def test_folders_do_for_catalogues(drawn, short):
    assert short[0].plan['photos'] == len(drawn)


def test_retrieval_callback_looks_when_told(drawn):
    net = base_network((32, 32, 3), 8, 'small', None, hidden=(), activation='l2')
    callback, seen = RetrievalCallback(net, drawn, every=2), []
    for epoch in range(4):
        logs = {}
        callback.on_epoch_end(epoch, logs)
        seen.append({k: np.isfinite(v) for k, v in logs.items()})
    assert (
        seen == [{'val_R@1': False, 'val_MAP@R': False}, {'val_R@1': True, 'val_MAP@R': True}] * 2
    )


def test_evaluate_with_a_gallery_counts_by_hand():
    queries, gallery = np.eye(3, dtype='float32'), np.eye(3, dtype='float32')[[0, 1, 1]]
    got = evaluate(
        np.repeat(queries, 2, 0), np.repeat([0, 1, 2], 2), gallery, np.array([0, 1, 2]), ks=(1,)
    )
    assert got['R@1'] == pytest.approx(
        4 / 6
    )  # the third product lies on its neighbour's place; ties go to the first


def test_scoreboard_rows(drawn):
    rows = scoreboard(BASELINES, drawn)
    assert [r['embedding'] for r in rows] == ['colour histogram', 'raw pixels', 'chance']
    assert rows[2]['R@1'] == pytest.approx(5 / 71) and rows[2]['triplet accuracy'] == 0.5
    assert all(0 <= r[f] <= 1 for r in rows for f in ('R@1', 'R@5', 'MAP@R', 'triplet accuracy'))


def test_evaluate_keeps_seen_and_unseen_apart():
    labels, x = np.repeat(np.arange(4), 5), np.random.default_rng(0).normal(size=(20, 6))
    mixed, none, unsaid = (evaluate(x, labels, ks=(1,), seen=s) for s in ([0, 1], [9], None))
    assert set(mixed.parts) == {'seen', 'unseen'} and none.parts == unsaid.parts == {}
    for name, part in mixed.parts.items():
        mine = labels < 2 if name == 'seen' else labels >= 2
        assert (
            part['R@1'] == pytest.approx(mixed.retrieval.per_query('R@1')[mine].mean())
            and part['queries'] == 10
        )
        assert {'triplet accuracy', 'hard triplet accuracy'} <= set(part)
    assert (
        '2 of these 4 products' in mixed.said
        and 'None of these' in none.said
        and 'not said' in unsaid.said
    )
    assert 'unseen products' in repr(mixed) and 'unseen products' in mixed._repr_html_()


def test_scoreboard_reports_seen_and_unseen_products_in_rows_of_their_own(drawn):
    rows = scoreboard(BASELINES, drawn, seen=drawn.products[:4])
    assert [r['embedding'] for r in rows] == [
        f'{n}, {p} products'
        for n in ('colour histogram', 'raw pixels', 'chance')
        for p in ('unseen', 'seen')
    ]
    assert [r['queries'] for r in rows] == [48, 24] * 3 and all(
        'triplet accuracy' in r for r in rows
    )


def test_baselines_of_a_network(drawn):
    net = base_network((32, 32, 3), 8, 'small', None, hidden=(), activation='l2')
    before = weights(net)
    rows = {r['embedding']: r for r in scoreboard({'it': net, **baselines(net)}, drawn)}
    assert list(rows) == [
        'it',
        'its backbone alone',
        'untrained network',
        'colour histogram',
        'raw pixels',
        'chance',
    ]
    for a, b in zip(weights(net), before):
        np.testing.assert_array_equal(a, b)
    assert rows['it'] != rows['untrained network']


def test_official_protocols(tmp_path):
    from triplet_fashion.datasets import draw_benchmark, read_inshop, read_sop

    shop, online = (
        read_inshop(draw_benchmark('inshop', tmp_path / 'a')),
        read_sop(draw_benchmark('sop', tmp_path / 'b')),
    )
    colours = BASELINES['colour histogram']
    got = evaluate_benchmark(shop, colours)
    want = retrieval_metrics(
        colours(shop.query),
        shop.query.labels,
        colours(shop.gallery),
        shop.gallery.labels,
        ks=(1, 10, 20, 30),
    )
    assert (
        {k: got[k] for k in want} == dict(want)
        and got['queries'] == len(shop.query)
        and 'None of these' in got.said
    )
    got = evaluate_benchmark(online, colours)
    assert (
        got['R@1'] == retrieval_metrics(colours(online.test), online.test.labels, ks=(1,))['R@1']
        and 'R@1000' in got
    )
    with pytest.raises(ValueError, match="needs 'query' and 'gallery'"):
        evaluate_benchmark({'train': shop.train}, colours)


class Clock:
    "A clock that a test sets."

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_retrieval_callback_chooses_by_retrieval_and_watches_its_cost(drawn, monkeypatch):
    import triplet_fashion.evaluation as module

    clock, figures = Clock(), iter([0.2, 0.6] + [0.4] * 9)
    monkeypatch.setattr(module, 'time', clock)

    def look(self):
        clock.now += 3
        return {'R@1': 0, 'MAP@R': next(figures)}

    monkeypatch.setattr(RetrievalCallback, 'evaluate_now', look)
    net = base_network((32, 32, 3), 8, 'small', None, hidden=(), activation='l2')
    callback = RetrievalCallback(net, drawn, share=0.1, restore=True)
    states, looked = [], []
    for epoch in range(16):
        callback.on_epoch_begin(epoch)
        clock.now += 10
        net.set_weights([w + 1 for w in net.get_weights()])
        logs = {'loss': -epoch}
        callback.on_epoch_end(epoch, logs)
        states.append(weights(net)[0])
        if np.isfinite(logs['val_MAP@R']):
            looked.append(epoch)
    callback.on_train_end()
    assert looked == [0, 1, 4, 7, 10, 13]  # 3 of 10 seconds at every third epoch are a tenth
    assert callback.best_epoch == 2 and callback.best == 0.6
    np.testing.assert_array_equal(weights(net)[0], states[1])


def test_retrieval_callback_is_fixed_and_honest(drawn):
    net = base_network((32, 32, 3), 8, 'small', None, hidden=(), activation='l2')
    a, b = (RetrievalCallback(net, drawn, photos=20, seed=3).catalog for _ in range(2))
    assert a.paths == b.paths and 20 <= len(a) <= 25 and set(a.counts()) == {0, 6}
    with pytest.raises(ValueError, match='both trained on and watched'):
        RetrievalCallback(net, drawn, train=drawn)


def test_fit_can_end_with_the_best_epoch(drawn):
    train, unseen = drawn.split(0.5, seed=1)
    run = fit(
        train,
        valid=unseen,
        net=tiny(False),
        epochs=4,
        P=5,
        restore_best=True,
        feature_cache=False,
        verbose=0,
    )
    at = run.history['val_MAP@R']
    assert run.best_epoch == 1 + int(np.argmax(at))
    assert retrieval_metrics(encode(unseen, run.net), unseen.labels, ks=(1,))[
        'MAP@R'
    ] == pytest.approx(max(at), abs=1e-6)


def test_settings_are_checked():
    with pytest.raises(ValueError, match='stronk'):
        Recipe.named('stronk')
    with pytest.raises(ValueError, match='learning_rat'):
        Recipe.named('original', learning_rat=1)


def test_catalogues_that_cannot_train(drawn):
    one = drawn.subset(drawn.labels == drawn.labels[0])
    singles = drawn.subset(np.unique(drawn.labels, return_index=True)[1])
    with pytest.raises(ValueError, match='1 product'):
        fit(one, **SMALL)
    for how in (dict(singles='leave out'), dict(recipe='scratch', augment=False)):
        with pytest.raises(ValueError, match='none of its 12 products'):
            fit(singles, **how, **SMALL)
    with pytest.raises(ValueError, match="batches='x'"):
        fit(drawn, batches='x', **SMALL)
    with pytest.raises(ValueError, match="schedule='x'"):
        fit(drawn, schedule='x', **SMALL)


def test_a_loss_that_is_not_finite_stops_the_run(drawn):
    import tensorflow as tf

    with pytest.raises(FloatingPointError, match='epoch 1.*learning_rate'):
        fit(
            drawn,
            net=tiny(),
            epochs=3,
            steps=2,
            P=4,
            loss=lambda y, e: tf.reduce_sum(e, 1) * np.nan,
            verbose=0,
        )


def test_lite0_features_are_computed_once(drawn, lite0):
    store = FeatureCache()
    run = fit(drawn, backbone=str(lite0), size=(96, 96), epochs=2, verbose=0, feature_cache=store)
    shape = (len(drawn), 1, *head_of(run.net).input_shape[1:])
    assert [rows.shape for rows in store.memory.values()] == [shape]
    assert 'frozen' in run.plan['network']
    before, *_ = scoreboard(before_training(run, store), drawn)
    assert before['embedding'] == 'frozen backbone' and before['R@1'] > 0.5


# ---- the losses by name, the monitor, a network of one's own


@pytest.mark.parametrize('loss', ['supcon', 'multi-similarity', 'weighted lossless'])
def test_losses_by_name(drawn, loss):
    run = fit(drawn, net=tiny(activation='sigmoid'), epochs=3, steps=4, P=6, loss=loss, verbose=0)
    assert len(run.history['loss']) == 3 and np.isfinite(run.history['loss']).all()


def test_a_memory_goes_through_fit_and_the_doctor_leaves_it_alone(drawn):
    memory = CrossBatchMemory(SupConLoss(), 400)
    kw = dict(epochs=2, steps=3, P=4, K=2, verbose=0)
    keras.utils.set_random_seed(0)
    fit(drawn, net=tiny(), loss=memory, **kw)
    kept = memory.labels.numpy()
    assert (
        int(memory.filled) == 2 * 3 * 4 * 2
    )  # what was trained on, none of what the monitor looked at
    memory = CrossBatchMemory(SupConLoss(), 400)
    keras.utils.set_random_seed(0)
    fit(drawn, net=tiny(), loss=memory, monitor=None, **kw)
    np.testing.assert_array_equal(kept, memory.labels.numpy())


def test_the_doctor_stops_what_cannot_learn(drawn):
    kw = dict(epochs=5, steps=2, P=4, K=2, verbose=0, loss='hard')

    class Blind(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[-2].set_weights([0 * w for w in self.model.layers[-2].get_weights()])

    with pytest.warns(TrainingWarning, match='collapse'):
        run = fit(drawn, net=tiny(), callbacks=[Blind()], monitor='stop', **kw)
    assert len(run.history['loss']) < 5
    with pytest.warns(TrainingWarning, match='collapse'):
        run = fit(drawn, net=tiny(), callbacks=[Blind()], **kw)
    assert len(run.history['loss']) == 5


def test_the_strong_recipe_stays_strong_for_a_frozen_network(drawn):
    body = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    )
    net = base_network((32, 32, 3), 8, backbone=body, trainable=False)
    run = fit(drawn, net=net, epochs=1, steps=2, verbose=0)
    assert run.recipe.learning_rate == Recipe().learning_rate and run.recipe.loss == 'supcon'


@pytest.mark.parametrize('kind', ['function', 'layer'])
def test_an_augmentation_of_ones_own_is_the_one_that_is_used(drawn, backbone, kind):
    """As a function or a layer, in a run from scratch and in the second stage of a deep one; where
    it would do nothing that is said."""
    seen = tf.Variable(0, dtype=tf.int64)

    def mine(images, seed=0):
        seen.assign_add(1)
        return images

    class Mine(keras.layers.Layer):
        def call(self, images, training=False):
            return mine(images) if training else images

    augment = mine if kind == 'function' else Mine()
    fit(drawn, recipe='scratch', epochs=1, steps=2, P=4, monitor=None, augment=augment, **SMALL)
    assert seen.numpy() >= 2
    before, kw = (
        seen.numpy(),
        dict(
            backbone=str(backbone),
            size=(32, 32),
            epochs=1,
            steps=2,
            out_dims=16,
            hidden=(),
            verbose=0,
            monitor=None,
        ),
    )
    fit(drawn, recipe='deep', tune_epochs=1, copies=2, feature_cache=False, augment=augment, **kw)
    assert seen.numpy() > before
    with pytest.raises(ValueError, match='has no effect: features of a frozen backbone'):
        fit(drawn, feature_cache=False, augment=augment, **kw)


def test_deep_trains_the_upper_part_on_what_lies_below_computed_once(drawn, backbone, tmp_path):
    train, unseen = drawn.split(valid=0.3, by='product', seed=0)
    kw = dict(
        recipe='deep',
        backbone=str(backbone),
        size=(32, 32),
        epochs=2,
        tune_epochs=2,
        copies=2,
        out_dims=16,
        hidden=(32,),
        verbose=0,
        monitor=None,
    )
    run = fit(train, valid=unseen, run_dir=tmp_path, **kw)
    assert (
        run.recipe.K == 6
        and run.recipe.P == len(train.products)
        and 'augmented copies' in run.plan['then']
    )
    assert len(run.history['loss']) == len(
        run.history['val_MAP@R']
    ) == 4 and run.best_epoch == 1 + int(np.argmax(run.history['val_MAP@R']))
    assert run.history['learning_rate'][-1] < 1e-5 < run.history['learning_rate'][2]
    was, now = (
        keras.models.load_model(backbone, compile=False).get_weights(),
        backbone_of(run.net).get_weights(),
    )
    same = [np.array_equal(a, b) for a, b in zip(was, now)]
    assert (
        0.3 < np.mean(same) < 0.95 and same[0] and not all(same[-10:])
    )  # the lower part, and every BatchNorm, as they were
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'features').iterdir()}
    again = fit(
        train, valid=unseen, run_dir=tmp_path, **kw
    )  # complete: nothing is computed, nothing trained
    assert (
        again.history == run.history
        and {p: p.stat().st_mtime_ns for p in (tmp_path / 'features').iterdir()} == files
    )
    np.testing.assert_array_equal(weights(again.net)[-2], weights(run.net)[-2])
    with pytest.raises(ValueError, match='tune_rate'):
        fit(train, valid=unseen, run_dir=tmp_path, **kw | dict(tune_rate=1e-5))


def test_unfreezing_everything_trains_on_photos(drawn, backbone):
    run = fit(
        drawn,
        recipe='deep',
        unfreeze=1.0,
        backbone=str(backbone),
        size=(32, 32),
        epochs=1,
        tune_epochs=1,
        steps=1,
        P=2,
        K=2,
        out_dims=8,
        hidden=(),
        verbose=0,
        monitor=None,
    )
    norms = [l for l in run.net._flatten_layers() if isinstance(l, keras.layers.BatchNormalization)]
    assert (
        len(run.history['loss']) == 2
        and backbone_of(run.net).trainable_weights
        and norms
        and not any(l.trainable for l in norms)
    )


def test_a_batch_fits_the_catalog(drawn):
    recipe = Recipe.named('strong', backbone='ResNet50')

    def fitted(catalog, **changes):
        return [getattr(recipe.replace(**changes).fitted_to(catalog), k) for k in 'PK']

    assert fitted(drawn) == [12, 6] and fitted(drawn, P=3, K=9) == [3, 9]
    pairs = drawn.subset(
        np.concatenate([np.flatnonzero(drawn.labels == c)[:2] for c in drawn.products])
    )
    assert fitted(pairs) == [12, 2]


@pytest.mark.parametrize(
    'loss, level',
    [
        ('hard', 0.3),
        ('semihard', 0.3),
        ('all', 0.3),
        ('supcon', np.log(23)),
        ('multi-similarity', None),
        ('weighted lossless', {}),
    ],
)
def test_landmarks_of_each_loss(loss, level):
    """The line at collapse is what the loss of a batch is whose codes are all but equal; none where
    that is not known."""
    mined = {} if loss in LOSSES_BY_NAME else dict(margin=0.3)
    said = Recipe.named('scratch', loss=loss, P=6, K=4, **mined).reference_levels(products=10)
    if level == {}:
        assert said == {}
        return
    loss = LOSSES_BY_NAME[loss]() if loss in LOSSES_BY_NAME else BatchTripletLoss(loss, margin=0.3)
    codes = np.ones((24, 8)) + 1e-5 * np.random.default_rng(0).normal(size=(24, 8))
    assert said['collapse'] == pytest.approx(
        float(loss(np.repeat(np.arange(6), 4), codes)), rel=1e-3
    )
    assert level is None or said['collapse'] == pytest.approx(level)


def test_a_network_that_was_given_is_reported_as_it_is(drawn):
    net = base_network(
        (32, 32, 3),
        8,
        keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Conv2D(6, 5, strides=4),
                keras.layers.GlobalAveragePooling2D(),
            ],
            name='own',
        ),
        hidden=(),
        rescale='unit',
    )
    before = encode(drawn, net)
    run = fit(drawn, net=net, epochs=1, steps=2, P=4, size=(32, 32), verbose=0, monitor=None)
    assert 'own' in run.plan['network'] and run.recipe.out_dims == 8 and run.recipe.hidden is None
    ((name, start),) = before_training(run).items()
    assert name == 'network before training' and not np.allclose(before, encode(drawn, run.net))
    np.testing.assert_allclose(start(drawn), before, atol=1e-6)
    with pytest.raises(
        ValueError, match='out_dims, dropout: settings of a network that is made here'
    ):
        fit(drawn, net=net, out_dims=16, dropout=0.1)


def test_nothing_left_to_train_is_an_error(drawn, short):
    last = max(short[1].iterdir())
    with pytest.raises(
        ValueError, match='after epoch 2, and epochs=2 counts from the very first: ask for more'
    ):
        fit(drawn, epochs=2, steps=1, P=4, weights_from=last, monitor=None, **SMALL)


def test_bad_photos_are_left_out_of_frozen_runs_and_named(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / 'photos')
    train, unseen = Catalog.from_dir(tmp_path / 'photos').split(0.34, seed=1)
    for c in (train, unseen):
        Path(c.paths[0]).write_bytes(b'no photo')

    def body():
        return keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Conv2D(4, 5, strides=4),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )

    kw = dict(size=(32, 32), epochs=2, verbose=0, monitor=None)
    for trainable, n in (
        (False, 2),
        (True, 1),
    ):  # where photos are learned from, others stand in for the bad one
        net = base_network((32, 32, 3), 8, body(), trainable=trainable)
        with pytest.warns(
            UserWarning, match=f'{n} photos could not be read and were left out'
        ) as said:
            run = fit(train, valid=unseen, net=net, recipe=Recipe(), **kw)
        told = ' '.join(str(w.message) for w in said)
        assert (
            unseen.paths[0] in told
            and train.paths[0] in told
            and len(run.history['val_MAP@R']) == 2
        )
    good = train.subset(range(1, len(train)))
    keras.utils.set_random_seed(1)
    a = fit(train, net=base_network((32, 32, 3), 8, body(), trainable=False), **kw)
    keras.utils.set_random_seed(1)
    b = fit(good, net=base_network((32, 32, 3), 8, body(), trainable=False), **kw)
    assert a.history == b.history and a.recipe == b.recipe  # the bad one was never learned from


def test_features_are_kept_without_being_asked(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv('TRIPLET_FASHION_CACHE', str(tmp_path))
    net = tiny(False)
    plans, kw = (
        [],
        dict(net=net, size=(32, 32), epochs=1, steps=2, P=4, K=2, verbose=0, monitor=None),
    )
    fit(drawn, show_plan=plans.append, **kw)
    (file,) = (tmp_path / 'features').glob('*.npy')
    made = file.stat().st_ino
    fit(drawn, show_plan=plans.append, **kw)
    assert file.stat().st_ino == made and plans[0]['features are kept in'] == str(
        tmp_path / 'features'
    )
    fit(drawn.subset(range(60)), feature_cache=False, show_plan=plans.append, **kw)
    assert (
        len(list((tmp_path / 'features').glob('*.npy'))) == 1
        and 'features are kept in' not in plans[2]
    )


def test_precision_by_the_machine(drawn, monkeypatch):
    from triplet_fashion.runs.networks import gains_from_bfloat16

    plain, mobile = (
        base_network((32, 32, 3), 8, b, None, hidden=(), **k)
        for b, k in (('small', {}), ('MobileNetV2', dict(alpha=0.35)))
    )
    for has, gains in ((True, [True, False]), (False, [False, False]), (None, [False, False])):
        monkeypatch.setattr('triplet_fashion.runs.networks.has_bfloat16', lambda: has)
        assert [gains_from_bfloat16(n) for n in (plain, mobile)] == gains
        run = fit(drawn, epochs=1, steps=1, P=4, precision='auto', monitor=None, **SMALL)
        assert (
            run.recipe.precision == ('bfloat16' if has else 'float32') and run.history['loss'] != []
        )


def test_the_plan_is_printed_first(drawn, capsys):
    run = fit(drawn, epochs=1, steps=1, P=4, size=(32, 32), out_dims=8, monitor=None, verbose=2)
    said = capsys.readouterr().out
    assert said.index('a step ') < said.index('loss: ') and re.search(r'products +12\n', said)
    assert 'rank' not in run.history  # no monitor


def test_the_help_of_fit_names_every_setting():
    for f in dataclasses.fields(Recipe):
        assert f.name in ('name', 'reason') or f'`{f.name}`' in fit.__doc__, f.name


def test_plot_history_takes_what_there_is():
    for history, n in (
        ({'loss': [2.0, 1.0]}, 1),
        ({'loss': [2.0, 1.0], 'learning_rate': [1e-3, 0.0]}, 2),
        (
            {'loss': [2.0, np.nan], 'val_MAP@R': [np.nan, 0.5], 'd+': [0.1, 0.2], 'd-': [1.0, 1.0]},
            3,
        ),
    ):
        assert len(plot_history(history).axes) == n


def test_find_learning_rate_knows_the_range_and_leaves_the_network_alone(drawn):
    """On a quadratic loss the fall is fastest at a rate that moves by itself when the codes are
    scaled: here, only that it lies inside and repeats."""
    net = base_network((32, 32, 3), 16, 'small', None, hidden=(), activation='l2')
    before = weights(net)
    found, again = (
        find_learning_rate(drawn, net=net, loss='supcon', steps=40, P=6, size=(32, 32))
        for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(before, weights(net)))
    assert (
        found == again
        and 1e-5 < found.best < 0.3
        and len(found.rates) == len(found.losses) == len(found.smooth)
    )
    assert np.mean(found.losses[:5]) > min(found.smooth) + 0.1
    assert found.plot().get_xscale() == 'log'
    for kw, words in (
        (dict(steps=5), '10 or more'),
        (dict(lowest=0.0), 'lowest=0.0'),
        (dict(lowest=0.1, highest=0.01), '10 or more'),
        (dict(stps=5), 'stps'),
    ):
        with pytest.raises(ValueError, match=words):
            find_learning_rate(drawn, size=(32, 32), **kw)


def test_find_learning_rate_stops_where_the_loss_breaks(drawn):
    "Without a norm on the codes, a rate of 1e4 must break it long before the last step."
    found = find_learning_rate(
        drawn,
        net=base_network((32, 32, 3), 16, 'small', None, hidden=(), activation=None),
        loss='hard',
        lowest=1e-5,
        highest=1e6,
        steps=60,
        P=6,
        size=(32, 32),
    )
    assert len(found.rates) < 60 and np.isfinite(found.losses).all() and found.best < 10


def test_weights_decay_by_as_much_in_long_runs(drawn):
    """'auto' is 0.5 up to 512 steps, and 256/steps above; a number is taken as it is, and settings
    that do not name it have none."""

    def decay(n, **given):
        return Recipe(**given).optimizer(steps=n).weight_decay

    assert [decay(n, weight_decay='auto') for n in (2, 512, 1024, 25_600)] == [0.5, 0.5, 0.25, 0.01]
    assert decay(5000, weight_decay=0.1) == 0.1 and decay(10) is None

    def run(**kw):
        return fit(
            drawn, net=tiny(), epochs=1, steps=1, P=4, monitor=None, verbose=0, **kw
        ).model.optimizer.weight_decay

    assert run() == 0.5 and run(weight_decay=None) is None


def test_half_precision_trains_like_full(drawn, monkeypatch):
    kw = dict(
        SMALL, epochs=3, P=6, steps=6, augment=False, loss='supcon', learning_rate=5e-4
    )  # smooth and slow: the two stay together
    full, half = fit(drawn, **kw), fit(drawn, precision='bfloat16', **kw)
    computed = {l.compute_dtype for l in half.net._flatten_layers() if l.weights}
    assert (
        'bfloat16' in computed
        and half.net.layers[-1].compute_dtype == 'float32'
        and {w.dtype for w in half.net.weights if 'seed' not in w.path} == {'float32'}
    )
    assert (
        half.history['loss'] == pytest.approx(full.history['loss'], rel=0.05)
        and half.history['loss'] != full.history['loss']
    )
    assert encode(drawn, half.net).dtype == np.float32
    with pytest.raises(ValueError, match="precision='float15'"):
        fit(drawn, precision='float15', **SMALL)
    monkeypatch.setattr('triplet_fashion.runs.networks.has_bfloat16', lambda: False)
    with pytest.warns(UserWarning, match='no instructions for bfloat16'):
        plan_of(drawn, precision='bfloat16', size=32, out_dims=16)


def test_keras_own_callbacks_see_every_figure(watched):
    "A CSV log, as from any Keras training."
    run, _, folder = watched
    rows = np.genfromtxt(folder / 'log.csv', delimiter=',', names=True, deletechars='')
    assert rows['val_MAP@R'] == pytest.approx(run.history['val_MAP@R'], abs=1e-6) and rows[
        'learning_rate'
    ] == pytest.approx(run.history['learning_rate'], abs=1e-9)


def test_tensorboard_sees_them_too(watched):
    pytest.importorskip('tensorboard', reason='needs tensorboard')
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _, written = watched
    found = {}
    for folder in {p.parent for p in (written / 'board').rglob('events.*')}:
        events = EventAccumulator(str(folder)).Reload()
        found |= {
            tag: [float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
            for tag in events.Tags()['tensors']
            if tag.startswith('epoch_')
        }
    assert {'epoch_loss', 'epoch_MAP@R', 'epoch_learning_rate'} <= set(found) or {
        'epoch_loss',
        'epoch_val_MAP@R',
    } <= set(found)
    assert found['epoch_loss'] == pytest.approx(run.history['loss'], rel=1e-5)


def test_what_a_network_was_before_keeps_the_statistics_of_its_entrance(drawn):
    """Normalization computes with copies of its numbers: the copy of the network has to look at
    them again."""
    norm = keras.layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(120, 40, (64, 3)).astype('float32'))
    body = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            norm,
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    net = base_network((16, 16, 3), 8, backbone=body)
    was = encode(drawn, net)
    run = fit(
        drawn,
        net=net,
        size=(16, 16),
        recipe='scratch',
        epochs=1,
        steps=1,
        P=4,
        K=2,
        verbose=0,
        monitor=None,
    )
    (found,) = before_training(run).values()
    np.testing.assert_allclose(found(drawn), was, rtol=1e-4, atol=1e-5)


# ---- settings and arguments: looked at before a photo is read

NAN = float('nan')
MEANINGLESS = dict(
    epochs=[0, 2.5, True, '3'],
    steps=[0],
    P=[1, 2.0],
    K=[1],
    batch=[1],
    learning_rate=[NAN, -1, float('inf'), 0, '1e-3'],
    margin=[NAN, -1],
    dropout=[1.0, -0.1],
    clipnorm=[0, -1],
    weight_decay=[NAN, -1, 'much'],
    trainable=[2.0, 'no'],
    unfreeze=[2, -0.1, NAN],
    out_dims=[0],
    hidden=[1024, (0,)],
    schedule=['x'],
    batches=['x'],
    loss=['x', 3],
    augment=['yes'],
    precision=['float15'],
    size=[0, 2.5, (1, 2, 3), 'large'],
    seed=[NAN, -1, 1.5],
    monitor=['x'],
    callbacks=[7, [7]],
    recipe=['stronk', ['strong'], {'epoch': 3}, {'epochs': 3}],
)


@pytest.mark.parametrize('name', MEANINGLESS)
def test_values_that_mean_nothing_are_named_before_the_first_step(drawn, name):
    for value in MEANINGLESS[name]:
        with pytest.raises((ValueError, TypeError), match=f'{name}=|{name} holds'):
            fit(drawn, verbose=0, **{name: value})
        if name in ('schedule', 'callbacks', 'monitor'):
            continue
        with pytest.raises((ValueError, TypeError)):
            find_learning_rate(drawn, **{name: value})


@pytest.mark.parametrize(
    'name, given',
    [
        ('batch_size', {}),
        ('batch_size', dict(recipe='deep')),
        ('P', dict(recipe='original')),
        ('K', dict(recipe='original')),
        ('batch', dict(recipe='original')),
        ('batch', dict(P=4)),
        ('margin', dict(loss='supcon')),
        ('margin', dict(loss=SupConLoss())),
        ('margin', dict(recipe='original')),
        ('warmup', dict(schedule=None)),
        ('copies', {}),
        ('tune_epochs', {}),
        ('tune_rate', dict(recipe='deep')),
        ('unfreeze', dict(trainable=True)),
        ('copies', dict(unfreeze=1.0, trainable=False)),
        ('augment', dict(backbone='ResNet50')),
        ('augment', dict(backbone='ResNet50', unfreeze=0.5, copies=1)),
        ('weights', dict(backbone='mine.keras')),
        ('restore_best', {}),
        ('watch_share', {}),
    ],
)
def test_a_setting_without_effect_is_an_error_that_says_so(drawn, name, given):
    value = dict(
        batch_size=8,
        P=4,
        K=2,
        batch=32,
        margin=9.0,
        copies=7,
        tune_epochs=2,
        tune_rate=1e-5,
        unfreeze=0.5,
        augment=True,
        weights=None,
        restore_best=True,
        watch_share=0.1,
        warmup=9,
    )[name]
    with pytest.raises(ValueError, match=f'{name}={value} has no effect: .*(Give|Leave|use)'):
        fit(drawn, verbose=0, **given | {name: value})


def test_a_setting_that_says_what_is_so_anyway_is_fine():
    named = Recipe.named
    assert named(
        'strong', backbone='ResNet50', augment=False, unfreeze=0.0, weights='imagenet'
    ) == named('strong', backbone='ResNet50')
    assert named('scratch', margin=0.5, loss='supcon').loss == 'supcon' and named(
        'original', batch_size=16
    ) == named('original')
    half, deep = (
        named('strong', backbone='ResNet50', unfreeze=0.5),
        named('deep', backbone='ResNet50'),
    )
    assert half.copies == deep.copies is not None  # a second stage has all it needs


def test_the_recipe_of_a_run_trains_another_one(drawn):
    """It holds every setting as it fitted the photos, so that the second run is the first once
    more; a seed is no setting."""
    first = fit(drawn, epochs=1, steps=2, seed=3, monitor=None, **SMALL)
    again = fit(drawn, recipe=first.recipe, seed=3, verbose=0, monitor=None)
    assert again.recipe == first.recipe and again.history == first.history and again.seed == 3
    assert Recipe.from_config(first.recipe.get_config()) == first.recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.recipe.epochs = 2


def test_the_recipe_of_a_network_that_was_given_needs_one(drawn):
    recipe = fit(drawn, net=tiny(), epochs=1, steps=1, P=4, K=2, verbose=0, monitor=None).recipe
    with pytest.raises(ValueError, match='recipe=.*of a run whose net was given.*Give net='):
        fit(drawn, recipe=recipe)
    assert fit(drawn, net=tiny(), recipe=recipe, verbose=0, monitor=None).recipe == recipe


def test_no_argument_of_a_recipe_passes_for_a_setting(drawn):
    for word in 'name', 'reason', 'net_is_frozen', 'seeds':
        with pytest.raises(ValueError, match=f'unknown setting {word}'):
            fit(drawn, **{word: 'x'})


def test_find_learning_rate_says_what_it_does_not_look_at(drawn):
    for given, words in (
        (dict(learning_rate=0.1), 'learning_rate: no effect on find_learning_rate'),
        (dict(epochs=3), 'epochs: no effect'),
        (dict(highest=NAN), 'highest=nan'),
        (dict(lowest=0.0), 'lowest=0.0'),
        (dict(steps=12.5), '12.5 steps'),
        (dict(batch_size=8), 'batch_size=8 has no effect'),
    ):
        with pytest.raises(ValueError, match=words):
            find_learning_rate(drawn, **given)
    with pytest.raises(TypeError, match='run must be what fit returns'):
        before_training(drawn)


class Before(Exception):
    pass


def plan_of(*args, **kw):
    "The plan of a run that stops there."
    plans = []

    def stop(plan):
        plans.append(plan)
        raise Before

    with pytest.raises(Before):
        fit(*args, show_plan=stop, verbose=0, **kw)
    return plans[0]


def test_the_plan_names_the_recipe_and_what_the_catalogue_made_of_it(drawn):
    small = plan_of(drawn, size=32)
    assert small[
        'recipe'
    ] == "scratch, as the backbone 'small' has no weights to start from" and small[
        'photos in, numbers out'
    ].startswith('32 x 32')
    assert plan_of(drawn, size=32, recipe='original', hidden=())['recipe'] == 'original'
    assert (
        plan_of(drawn, net=tiny())['recipe']
        == 'scratch, as the network that is given learns as a whole'
    )
    frozen = plan_of(drawn, net=tiny(False), feature_cache=False)
    assert (
        frozen['recipe'] == 'strong'
        and frozen['a step']
        == '12 products x 6 photos (K=8 was asked for, but half of the products have 6 photos '
        'or fewer)'
    )
    assert (
        'P=50 was asked for, but there are only 12 products'
        in plan_of(drawn, net=tiny(False), feature_cache=False, P=50, K=2)['a step']
    )
    assert (
        plan_of(drawn, net=tiny(False), feature_cache=False, P=4, K=2)['a step']
        == '4 products x 2 photos'
    )


def test_a_network_that_was_given_says_what_it_takes(drawn):
    assert plan_of(drawn, net=tiny())['photos in, numbers out'].startswith('32 x 32')
    with pytest.raises(ValueError, match='size=64, but net takes photos of 32 x 32'):
        fit(drawn, net=tiny(), size=64)
    with pytest.raises(ValueError, match="recipe='deep': net learns as a whole"):
        fit(drawn, net=tiny(), recipe='deep')
    with pytest.raises(ValueError, match='unfreeze=0.333, but trainable=0.5: the second stage'):
        fit(drawn, recipe='deep', backbone='ResNet50', trainable=0.5)


# ---- Keras' own callbacks


def test_callbacks_that_set_the_learning_rate_need_a_run_without_a_schedule(drawn):
    for call in (
        keras.callbacks.LearningRateScheduler(lambda e: 1e-3),
        keras.callbacks.ReduceLROnPlateau('loss'),
    ):
        for given in (
            {},
            dict(schedule=None, learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 9)),
        ):
            with pytest.raises(
                ValueError,
                match=f'{type(call).__name__} sets the learning rate.*give schedule=None',
            ):
                fit(drawn, callbacks=[call], **given)


@pytest.mark.parametrize(
    'call, rates',
    [
        (
            keras.callbacks.LearningRateScheduler(lambda e: 0.1 / (1 + e)),
            [0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4, 0.1 / 5, 0.1 / 6],
        ),
        (
            keras.callbacks.ReduceLROnPlateau(
                'loss', factor=0.5, patience=0, mode='max', min_delta=99
            ),
            [0.1, 0.1, 0.05, 0.1, 0.1, 0.05],
        ),
    ],
)
def test_they_work_in_both_stages_without_one(drawn, call, rates):
    run = fit(
        drawn,
        net=tiny(False),
        recipe='deep',
        schedule=None,
        learning_rate=0.1,
        tune_rate=0.1,
        epochs=3,
        tune_epochs=3,
        copies=2,
        steps=1,
        feature_cache=False,
        verbose=0,
        monitor=None,
        callbacks=[call],
    )
    assert run.history['learning_rate'] == pytest.approx(rates)


def test_callbacks_that_would_go_wrong_are_refused_with_the_way_on(drawn, tmp_path):
    calls, train, unseen = keras.callbacks, *drawn.split(0.25, seed=1)
    for call, words in (
        (calls.EarlyStopping(), "no figure 'val_loss' to monitor.*need valid="),
        (calls.ReduceLROnPlateau(), "no figure 'val_loss'"),
        (calls.EarlyStopping('val_map'), "no figure 'val_map'"),
        (calls.ModelCheckpoint(tmp_path / 'm.keras', save_best_only=True), "no figure 'val_loss'"),
        (calls.BackupAndRestore(tmp_path), 'give run_dir=FOLDER'),
        (calls.SwapEMAWeights(), 'give ema=0.97 instead'),
        (calls.EarlyStopping('d+'), "mode='max' or mode='min'"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(drawn, callbacks=call, schedule=None)
    for call, words in (
        (calls.EarlyStopping('val_loss'), "no figure 'val_loss' to monitor, only .*val_MAP@R"),
        (calls.EarlyStopping('val_MAP@R'), "Give it mode='max'"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(train, valid=unseen, callbacks=call)
    with pytest.raises(ValueError, match='how fast the machine is'):
        fit(train, valid=unseen, restore_best=True, watch_share=0.1)
    with pytest.raises(ValueError, match='how fast the machine is'):
        fit(
            train,
            valid=unseen,
            callbacks=calls.EarlyStopping('val_MAP@R', mode='max'),
            watch_share=0.1,
        )
    with pytest.warns(UserWarning, match='here the layers above the frozen ones'):
        plan_of(
            drawn,
            net=tiny(False),
            feature_cache=False,
            callbacks=calls.ModelCheckpoint(tmp_path / 'm.keras'),
        )


def test_a_callback_of_ones_own_may_add_the_figure_that_another_one_waits_for(drawn):
    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs['mine'] = epoch

    stop = keras.callbacks.EarlyStopping('mine', mode='min', patience=1)
    run = fit(
        drawn,
        net=tiny(),
        epochs=5,
        steps=1,
        P=4,
        K=2,
        verbose=0,
        monitor=None,
        callbacks=[Mine(), stop],
    )
    assert run.history['mine'] == [0, 1]


# ---- photos that vanish, numbers that are none, two runs at once


@pytest.mark.parametrize('trainable', [False, True])
def test_photos_that_have_vanished_are_left_out_and_named(drawn, tmp_path, trainable):
    """Listed, then gone: by a run on features, by one on photos that is to resume, and by a range
    test."""
    shutil.copytree(drawn.root, tmp_path / 'photos')
    catalog = Catalog.from_dir(tmp_path / 'photos')
    good = catalog.subset(np.arange(len(catalog)) != 2)
    Path(catalog.paths[2]).unlink()
    kw = dict(size=(32, 32), P=4, K=2, feature_cache=False)
    with pytest.warns(
        UserWarning,
        match='1 photos could not be read and were left out:\n'
        f'  {re.escape(catalog.paths[2])}: missing',
    ):
        run = fit(
            catalog,
            net=tiny(trainable),
            epochs=1,
            steps=2,
            verbose=0,
            monitor=None,
            run_dir=tmp_path / 'run',
            **kw,
        )
    assert len(run.history['loss']) == 1
    with pytest.warns(UserWarning, match='1 photos could not be read'):
        found = find_learning_rate(catalog, net=tiny(trainable), steps=10, highest=1e-2, **kw)
    assert len(found.losses) == 10 and len(good) == len(catalog) - 1


def test_a_photo_that_breaks_between_two_stages_is_left_out(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / 'photos')
    train, unseen = Catalog.from_dir(tmp_path / 'photos').split(0.34, seed=1)

    class Break(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            for c in (train, unseen):
                Path(c.paths[0]).write_bytes(b'no photo')

    with pytest.warns(UserWarning, match='2 photos could not be read and were left out'):
        run = fit(
            train,
            valid=unseen,
            net=tiny(False),
            recipe='deep',
            epochs=1,
            tune_epochs=1,
            copies=2,
            steps=1,
            feature_cache=False,
            verbose=0,
            monitor=None,
            callbacks=[Break()],
        )
    assert (
        len(run.history['loss']) == len(run.history['val_MAP@R']) == 2
        and np.isfinite(run.history['val_MAP@R']).all()
    )


@pytest.mark.parametrize('trainable', [False, True])
def test_a_network_of_nan_is_never_a_trained_one(drawn, trainable):
    "The loss of the only step is finite; what the step makes of the weights is not."
    with pytest.raises(
        FloatingPointError, match='no longer finite after epoch 1: use a learning_rate below 1e'
    ):
        fit(
            drawn,
            net=tiny(trainable),
            loss='hard',
            schedule=None,
            learning_rate=1e38,
            epochs=1,
            steps=1,
            P=4,
            K=2,
            feature_cache=False,
            verbose=0,
            monitor=None,
        )


def test_a_second_stage_needs_no_temporary_folder(drawn, monkeypatch):
    def none(*args, **kw):
        raise FileNotFoundError('no usable temporary directory')

    monkeypatch.setattr('tempfile.mkdtemp', none)
    run = fit(
        drawn,
        net=tiny(False),
        recipe='deep',
        epochs=1,
        tune_epochs=1,
        copies=1,
        steps=1,
        feature_cache=False,
        verbose=0,
        monitor=None,
    )
    assert len(run.history['loss']) == 2


def test_two_runs_at_once_are_what_each_is_alone(drawn):
    def one(seed):
        return fit(
            drawn,
            size=(32, 32),
            backbone='small',
            out_dims=8,
            dropout=0.3,
            epochs=2,
            steps=2,
            P=4,
            K=2,
            seed=seed,
            verbose=0,
            monitor=None,
        ).history['loss']

    alone = [one(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, (1, 2))) == alone
