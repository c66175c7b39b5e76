"Evaluation: products by name, photos that do not find themselves, watching and its cost."

import os

import keras, numpy as np, pytest

from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.evaluation import (
    BASELINES,
    RetrievalCallback,
    baselines,
    color_histogram,
    evaluate,
    evaluate_benchmark,
    raw_pixels,
    scoreboard,
)
from triplet_fashion.discriminant import discriminant
from triplet_fashion.encoder import Encoder
from triplet_fashion.features import FeatureCache, features
from triplet_fashion.metrics import knn_accuracy, retrieval_metrics
from triplet_fashion.verification import Verification, pair_distances
from triplet_fashion.photos.loading import load_images
from triplet_fashion.training import fit, plot_history

SMALL = dict(size=(32, 32), out_dims=16, verbose=0)
colours = BASELINES['colour histogram']


def test_baselines():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    thumbs, hist = raw_pixels(images), color_histogram(images, bins=4)
    assert (
        thumbs.shape == (3, 768)
        and hist.shape == (3, 64)
        and thumbs.dtype == hist.dtype == np.float32
    )
    np.testing.assert_allclose(
        raw_pixels(images, (8, 6))[1, :3], images[1, :5, :5].mean((0, 1)) / 255, rtol=1e-5
    )
    np.testing.assert_allclose(raw_pixels(images.astype('float32')), thumbs, rtol=1e-6)
    np.testing.assert_allclose(hist.sum(1), 1, rtol=1e-6)
    bins = [(images[2] // 64 == c).all(-1).mean() for c in np.ndindex(4, 4, 4)]
    np.testing.assert_allclose(hist[2], bins, rtol=1e-6)
    np.testing.assert_array_equal(color_histogram(images.astype('float32'), 4), hist)
    np.testing.assert_array_equal(color_histogram(np.full((1, 2, 2, 3), 255.0))[0, -1], 1)
    with pytest.raises(ValueError, match='smaller than the thumbnail'):
        raw_pixels(images[:, :10])
    for f in (raw_pixels, color_histogram):
        with pytest.raises(ValueError, match=r'\(n, h, w, 3\)'):
            f(images[0])


@pytest.fixture(scope='module')
def shops(tmp_path_factory):
    "A catalog, the same files under other ids, and other products under the same ids."
    home = tmp_path_factory.mktemp('shops')
    mine = draw_catalog(home / 'mine', n_products=8, n_views=4, seed=0)
    shifted = Catalog(mine.paths, mine.labels + 1, ['(0000)first', *mine.class_names])
    return mine, shifted, draw_catalog(home / 'other', n_products=8, n_views=4, seed=9)


def test_seen_products_are_known_by_name(shops):
    mine, shifted, other = shops
    assert (
        'All of these' in evaluate(colours(mine), mine, seen=shifted).said
        and 'None of these' in evaluate(colours(mine), mine, seen=other).said
    )
    half = shifted.subset(shifted.labels > 4)
    found = evaluate(colours(mine), mine, seen=half)
    assert '4 of these 8' in found.said and dict(found.parts['seen']) == dict(
        evaluate(colours(mine), mine, seen=[4, 5, 6, 7]).parts['seen']
    )
    with pytest.raises(ValueError, match='seen is a Catalog and labels are plain numbers'):
        evaluate(colours(mine), mine.labels, seen=shifted)


def test_a_gallery_is_searched_by_name(shops):
    mine, shifted, other = shops
    front, back = mine.labels * 0 + np.arange(32) % 4 < 2, np.arange(32) % 4 >= 2
    x = colours(mine)
    want = retrieval_metrics(x[front], mine.labels[front], x[back], mine.labels[back])
    got, *_ = scoreboard({'it': colours}, mine.subset(front), shifted.subset(back))
    assert {k: got[k] for k in want} == dict(want)
    with pytest.raises(ValueError, match='none of the 32 queries'):
        scoreboard({'it': colours}, mine, other)
    with pytest.raises(ValueError, match='gallery_labels is a Catalog'):
        evaluate(x, mine.labels, x, mine)


def test_a_photo_that_is_in_the_gallery_does_not_find_itself(shops):
    mine, shifted, _ = shops
    x = colours(mine)
    alone, (both, *_) = evaluate(x, mine), scoreboard({'it': colours}, mine, shifted)
    assert {k: both[k] for k in alone} == dict(alone) and both['R@1'] < 1
    assert both['5-NN'] == knn_accuracy(x, mine.labels)
    by_id = evaluate(
        x, mine.labels, x, mine.labels, query_ids=mine.ids, gallery_ids=mine.ids, seen=[0, 1]
    )
    assert by_id['5-NN'] == both['5-NN'] and by_id.parts['seen']['5-NN'] < 1
    link = os.path.join(os.path.dirname(mine.root), 'link')
    if not os.path.exists(link):
        os.symlink(mine.root, link)
    assert (
        scoreboard({'it': colours}, mine, Catalog.from_dir(link))[0]['R@1'] == alone['R@1']
    )  # by whatever path


def test_rows_say_how_sure_they_are(shops):
    mine, *_ = shops
    rows = scoreboard(BASELINES, mine, seen=[0, 1, 2])
    found = evaluate(colours(mine), mine, seen=[0, 1, 2]).parts['seen']
    row = next(r for r in rows if r['embedding'] == 'colour histogram, seen products')
    assert (
        row['R@1 interval'] == list(found.retrieval.interval('R@1'))
        and row['MAP@R interval'][0] <= row['MAP@R'] <= row['MAP@R interval'][1]
    )
    m = mine.labels < 3
    pairs = Verification(*pair_distances(colours(mine)[m], mine.labels[m]))
    assert (row['AUC'], row['EER']) == (pairs.auc, pairs.eer) and row['queries'] == 12
    chance = next(r for r in rows if r['embedding'].startswith('chance'))
    assert (
        chance['AUC'] == chance['EER'] == 0.5
        and 'hard triplet accuracy' not in chance
        and 'R@1 interval' not in chance
    )  # .5 is no chance of a hard triplet


def small():
    return base_network((32, 32, 3), 8, 'small', None, hidden=(), activation='l2')


def test_what_is_watched_is_checked_before_the_first_epoch(shops):
    mine, shifted, other = shops
    net = small()
    with pytest.raises(ValueError, match='8 products are both trained on and watched'):
        RetrievalCallback(net, mine, train=shifted)
    RetrievalCallback(net, mine, train=other)  # other products, though their ids are the same
    singles = mine.subset(np.unique(mine.labels, return_index=True)[1])
    for few in (singles, mine.subset([])):
        for call in (lambda: RetrievalCallback(net, few), lambda: fit(other, valid=few, **SMALL)):
            with pytest.raises(ValueError, match='no product has two photos'):
                call()
    with pytest.raises(ValueError, match="figure 'Recall@1'"):
        RetrievalCallback(net, mine, figures=('Recall@1',))
    with pytest.raises(ValueError, match="figure 'foo'"):
        RetrievalCallback(net, mine, choose='foo')
    with pytest.warns(UserWarning, match='4 of the 32 photos watched are trained on too'):
        fit(shifted.subset(np.arange(32) < 4) + other, valid=mine, epochs=1, steps=1, P=2, **SMALL)


def test_epochs_without_a_look_hold_their_place(shops, tmp_path):
    mine, _, other = shops
    log = keras.callbacks.CSVLogger(tmp_path / 'log.csv')
    net = small()
    watch = RetrievalCallback(net, mine, every=2)
    run = fit(
        other, net=net, epochs=4, steps=1, P=2, K=2, callbacks=[watch, log], monitor=None, verbose=0
    )
    assert (
        np.isnan(run.history['val_MAP@R']).tolist() == [True, False, True, False]
        and len(run.history['loss']) == 4
    )
    rows = np.genfromtxt(tmp_path / 'log.csv', delimiter=',', names=True, deletechars='')
    assert np.isnan(rows['val_R@1']).tolist() == [True, False, True, False]
    axes = {a.get_title(): a for a in plot_history(run).axes}
    lines = {l.get_label(): l for l in axes['retrieval'].lines}
    assert lines['MAP@R'].get_xdata().tolist() == [2, 4] and lines['MAP@R'].get_marker() == '.'
    assert len(plot_history({'loss': [1.0], 'val_MAP@R': [np.nan]}).axes) == 2


def test_a_loss_that_breaks_is_what_is_said_even_when_photos_are_watched(shops):
    import tensorflow as tf

    mine, _, other = shops
    with pytest.raises(FloatingPointError, match='epoch 1.*learning_rate'):
        fit(
            other,
            valid=mine,
            epochs=3,
            steps=2,
            P=4,
            loss=lambda y, e: tf.reduce_sum(e, 1) * np.nan,
            monitor=None,
            **SMALL,
        )


def test_a_later_stage_counts_on_from_the_best_of_the_first(shops, monkeypatch):
    import triplet_fashion.evaluation as module

    mine, *_ = shops
    figures = iter([0.3, 0.7, 0.5, 0.6, 0.8])
    monkeypatch.setattr(
        module, 'retrieval_metrics', lambda *a, **kw: {'R@1': 0, 'MAP@R': next(figures)}
    )
    net = small()

    def stage(epochs, after=None):
        watch = RetrievalCallback(net, mine, restore=True, after=after)
        for e in epochs:
            net.set_weights([w + 1 for w in net.get_weights()])
            watch.on_epoch_end(e, {'loss': 1.0})
        watch.on_train_end()
        return watch, np.array(net.get_weights()[0])

    first, at_best = stage([0, 1])
    second, end = stage([2, 3], first)
    assert (second.best, second.best_epoch) == (0.7, 2) and (end == at_best).all()
    third, end = stage([4], second)
    assert (third.best, third.best_epoch) == (0.8, 5) and (end == at_best + 1).all()


def test_the_cost_of_watching_is_measured(shops, monkeypatch):
    import triplet_fashion.evaluation as module

    mine, *_ = shops
    now = [0.0]
    monkeypatch.setattr(module, 'time', type('Clock', (), {'perf_counter': lambda: now[0]}))

    def look(*args, **kw):
        now[0] += 3
        return {'R@1': 0, 'MAP@R': 0.5}

    monkeypatch.setattr(module, 'retrieval_metrics', look)
    watch = RetrievalCallback(small(), mine, every=2)
    assert watch.cost is None
    for e in range(6):
        watch.on_epoch_begin(e)
        now[0] += 1000 if e == 0 else 10  # the first epoch compiles
        watch.on_epoch_end(e, {'loss': 1.0})
    assert watch.cost == pytest.approx(6 / 40)  # epochs 3 to 6, two of them looked at


# ---- labels, folders, and photos that cannot be read


@pytest.mark.parametrize(
    'names',
    [[f'(000{i})coat' for i in range(4)], [4006381333931 + i for i in range(4)], [-1, 0, 7, 2**40]],
)
def test_labels_are_whatever_the_user_has(names):
    "Text, EAN codes, lists and arrays score what class ids do, and say what training has seen."
    x, ids = np.random.default_rng(0).normal(size=(24, 6)), np.repeat(np.arange(4), 6)
    want = evaluate(x, ids, x[::-1], ids[::-1], ks=(1, 2), seen=[0, 3])
    labels = [names[i] for i in ids]
    got = evaluate(x, labels, x[::-1], np.array(labels)[::-1], ks=(1, 2), seen=[names[0], names[3]])
    assert dict(got) == dict(want) and got.said == want.said
    assert {k: dict(p) for k, p in got.parts.items()} == {k: dict(p) for k, p in want.parts.items()}


def test_labels_that_cannot_be_meant():
    x = np.random.default_rng(0).normal(size=(4, 6))
    with pytest.raises(ValueError, match='labels: 1 of 4 photos have no label'):
        evaluate(x, [0, 0, 1, None])
    with pytest.raises(ValueError, match='labels must hold one label a photo'):
        evaluate(x, [0, 0, 1])
    with pytest.raises(ValueError, match='seen mix text .* and numbers'):
        evaluate(x, [0, 0, 1, 1], seen=['coat'])


def test_products_seen_in_training_may_be_named(shops):
    mine, *_ = shops
    by_name = evaluate(colours(mine), mine, seen=mine.class_names[:2])
    assert '2 of these 8' in by_name.said and by_name.parts.keys() == {'seen', 'unseen'}
    assert dict(by_name.parts['seen']) == dict(
        evaluate(colours(mine), mine, seen=[0, 1]).parts['seen']
    )


def test_a_folder_does_wherever_a_catalog_does(shops):
    mine, _, other = shops
    net, folder = small(), mine.root
    for do in (
        lambda c: evaluate(colours(c), c, seen=c),
        lambda c: scoreboard({'it': colours}, c, c, seen=c),
        lambda c: baselines(net)['untrained network'](c).tolist(),
        lambda c: evaluate_benchmark({'test': c}, colours),
        lambda c: RetrievalCallback(net, c, train=other.root).catalog.paths,
    ):
        assert do(folder) == do(mine)
    assert repr(scoreboard(BASELINES, folder)).startswith('32 queries of 8 products (Catalog mine)')
    with pytest.raises(TypeError, match='embeddings must be numbers.*scoreboard takes networks'):
        evaluate(net, mine)
    with pytest.raises(TypeError, match='catalog must be a Catalog or a folder'):
        scoreboard(BASELINES, 7)
    with pytest.raises(TypeError, match='an embedding is a network'):
        scoreboard({'it': 7}, mine)


@pytest.fixture
def damaged(tmp_path):
    "Photos of which one has vanished and one has broken since, and those that are left."
    shelf = draw_catalog(tmp_path / 'shelf', n_products=4, n_views=4, seed=0)
    os.unlink(shelf.paths[1])
    with open(shelf.paths[6], 'r+b') as f:
        f.truncate(200)
    return shelf, shelf.subset([i not in (1, 6) for i in range(16)])


def test_photos_that_cannot_be_read_are_left_out_of_a_scoreboard_and_named(damaged):
    "Of every row: all embeddings are judged on the same photos, as queries and as a gallery."
    shelf, good = damaged
    net = small()
    ways = {'network': net, 'kept': Encoder(net, feature_cache=FeatureCache()).encode, **BASELINES}
    with pytest.warns(UserWarning, match='2 photos could not be read and were left out') as said:
        rows = scoreboard(ways, shelf)
    assert shelf.paths[1] in str(said[0].message) and shelf.paths[6] in str(said[0].message)
    assert rows == scoreboard(ways, good) and {r['queries'] for r in rows} == {14}
    assert (
        '14 queries' in rows.protocol
        and shelf.paths[6] in rows.protocol
        and [p for p, _ in rows.left_out] == [shelf.paths[1], shelf.paths[6]]
    )
    with pytest.warns(UserWarning, match='2 photos could not be read'):
        assert scoreboard(ways, good, shelf) == scoreboard(ways, good, good)
    with pytest.warns(UserWarning, match='2 photos could not be read'):
        assert 'not those of the official protocol' in evaluate_benchmark({'test': shelf}, net).said


def test_a_photo_that_vanishes_while_it_is_watched_does_not_end_the_training(tmp_path, shops):
    *_, other = shops
    shelf = draw_catalog(tmp_path / 'shelf', n_products=4, n_views=4, seed=0)

    class Thief(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for path in {1: shelf.paths[:1], 2: shelf.paths[1:]}.get(epoch, []):
                os.unlink(path)

    with pytest.warns(UserWarning) as said:
        run = fit(
            other,
            valid=shelf,
            epochs=3,
            steps=1,
            P=2,
            K=2,
            callbacks=[Thief()],
            monitor=None,
            **SMALL,
        )
    told = ' '.join(str(w.message) for w in said)
    assert (
        'those of the other 15 photos' in told
        and shelf.paths[0] in told
        and 'no photo is left to watch' in told
    )
    assert (
        np.isfinite(run.history['val_MAP@R']).tolist() == [True, True, False]
        and len(run.history['loss']) == 3
    )


def test_embeddings_that_are_no_numbers_are_no_score(shops):
    mine, *_ = shops

    def broken(c):
        return np.full((len(c), 4), np.nan)

    with pytest.raises(ValueError, match='32 of 32 embeddings hold NaN'):
        scoreboard({'it': broken, **BASELINES}, mine)


@pytest.mark.parametrize(
    'given',
    [
        dict(every=0),
        dict(every=2.5),
        dict(photos=0),
        dict(share=0),
        dict(share=float('nan')),
        dict(photos='all'),
    ],
)
def test_numbers_of_watching_that_mean_nothing_are_named(shops, given):
    mine, *_ = shops
    with pytest.raises(ValueError, match=f'{next(iter(given))}='):
        RetrievalCallback(small(), mine, **given)


# ---- the colour histogram, asked for or not


def blind(catalog):
    return np.random.default_rng(0).normal(size=(len(catalog), 8))


def sighted(catalog):
    return np.eye(99)[catalog.labels]


def names(rows):
    return [row['embedding'] for row in rows]


def test_the_histogram_compares_roots_of_shares(shops):
    "Which have length 1: their cosine is the Bhattacharyya coefficient of the shares."
    mine, *_ = shops
    shares = color_histogram(load_images(mine.paths, (64, 64)))
    np.testing.assert_allclose(colours(mine) ** 2, shares, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(colours(mine), axis=1), 1, rtol=1e-5)
    got, *_ = scoreboard({'colour histogram': colours}, mine)
    assert (
        got['MAP@R']
        == retrieval_metrics(shares**0.5, mine.labels)['MAP@R']
        != retrieval_metrics(shares, mine.labels)['MAP@R']
    )


def test_the_histogram_is_shown_whether_it_was_asked_for_or_not(shops):
    "After what was given and before chance; where it was given, in its own place and once."
    mine = shops[0]
    rows = scoreboard({'chance': None, 'mine': blind, 'yours': sighted}, mine)
    assert names(rows) == ['mine', 'yours', 'colour histogram', 'chance']
    asked = scoreboard({'colour histogram': colours, 'mine': blind}, mine)
    assert (
        names(asked) == ['colour histogram', 'mine'] and asked[0] == rows[2] and asked[1] == rows[0]
    )
    assert names(scoreboard({'luck': None}, mine)) == ['colour histogram', 'luck']
    own = scoreboard({'colour histogram': sighted}, mine)  # the name is taken
    assert names(own) == ['colour histogram'] and own[0]['R@1'] == 1
    front = np.arange(len(mine)) % 4 < 2
    apart = scoreboard(
        {'mine': blind}, mine.subset(front), mine.subset(~front), seen=mine.subset(mine.labels < 3)
    )
    assert names(apart) == [
        f'{n}, {kind} products' for n in ('mine', 'colour histogram') for kind in ('unseen', 'seen')
    ]


def test_photos_that_only_the_histogram_reads_change_no_other_row(damaged, recwarn):
    "Embeddings made elsewhere are judged on all photos, though some, or all, are not on disk."
    shelf, good = damaged
    gone = Catalog([f'{path}.gone' for path in shelf.paths], shelf.labels, shelf.class_names)
    ways = {'elsewhere': sighted, 'chance': None}
    for some in (shelf, gone):
        rows = scoreboard(ways, some)
        assert (
            names(rows) == ['elsewhere', 'chance']
            and rows[0]['queries'] == 16
            and rows.left_out == []
        )
        assert (
            'The colour histogram is left out' in rows.protocol and 'no such file' in rows.protocol
        )
        assert names(scoreboard(ways, good, some)) == [
            'elsewhere',
            'chance',
        ]  # or not in the gallery
        assert names(scoreboard({'luck': None}, some)) == ['luck']
    assert not any('could not be read' in str(w.message) for w in recwarn)
    whole = scoreboard(ways, good)
    assert (
        names(whole) == ['elsewhere', 'colour histogram', 'chance']
        and 'left out' not in whole.protocol
    )


def test_the_histogram_is_judged_on_the_photos_of_the_others(damaged):
    "A photo that a network cannot read is in no row, that of the histogram included."
    shelf, good = damaged
    with pytest.warns(UserWarning, match='2 photos could not be read'):
        rows = scoreboard({'network': small()}, shelf)
    assert {row['queries'] for row in rows} == {14} and rows[1] == scoreboard(
        {'colour histogram': colours}, good
    )[0]
    with pytest.warns(UserWarning, match='2 photos could not be read'):
        asked = scoreboard({'elsewhere': sighted, **BASELINES}, shelf)
    assert {row['queries'] for row in asked} == {14}  # as whatever was asked for


def test_a_scoreboard_says_what_is_no_better_than_what_learned_nothing(drawn):
    "The first embedding is judged by the best plain row of the same products, asked for or not."
    worse = scoreboard({'mine': blind}, drawn)
    assert (
        "'mine'" in worse.warning
        and f"{worse[1]['R@1']:.3f} of 'colour histogram'" in worse.warning
    )
    assert worse.warning in repr(worse) and '<p>R@1 of' in worse._repr_html_()
    assert (
        scoreboard({'mine': sighted}, drawn).warning == ''
        and scoreboard(BASELINES, drawn).warning == ''
    )
    assert (
        'mine, too' in scoreboard({'mine, too': blind}, drawn).warning
    )  # a comma in a name means nothing
    better = scoreboard({'mine': blind, 'colour histogram': blind, 'raw pixels': sighted}, drawn)
    assert "1.000 of 'raw pixels'" in better.warning
    parts = scoreboard({'mine': blind}, drawn, seen=drawn.subset(drawn.labels < 6))
    assert (
        "of 'mine, unseen products'" in parts.warning
        and "of 'colour histogram, unseen products'" in parts.warning
    )


def test_without_recall_at_1_the_warning_speaks_of_another_figure(drawn):
    assert scoreboard({'mine': blind}, drawn, ks=(5,)).warning.startswith('MAP@R of')


# baselines that are computed of frozen features


@pytest.fixture(scope='module')
def frozen():
    keras.utils.set_random_seed(0)
    return base_network(
        (48, 48, 3), 8, backbone='small', weights=None, activation='l2', trainable=False
    )


def test_pca_and_lda_are_fitted_to_the_training_catalog_alone(shops, frozen):
    mine, _, other = shops
    rows = {r['embedding']: r for r in scoreboard(baselines(frozen), mine, seen=other, ks=(1,))}
    f, g = features(frozen, mine), features(frozen, other)
    kernel, bias = discriminant(g, other.labels, 128, shrinkage=0.1)
    axes = np.linalg.svd(np.float64(g - g.mean(axis=0)), full_matrices=False)[2][:128].T
    for name, x in (('LDA', f @ kernel + bias), ('PCA', (f - g.mean(axis=0)) @ axes)):
        want = retrieval_metrics(x, mine.labels, ks=(1,))
        row = rows[f'{name} of frozen features']
        assert row['R@1'] == want['R@1'] and row['MAP@R'] == pytest.approx(want['MAP@R'])
    gallery = mine.subset(mine.labels % 2 == 0)
    queried = scoreboard(baselines(frozen), mine.subset(mine.labels == 0), gallery, seen=other)
    assert 'LDA of frozen features' in [r['embedding'] for r in queried]


def test_pca_and_lda_are_left_out_and_said_without_a_training_catalog(shops, frozen):
    mine, _, other = shops
    for seen in (None, [0, 1]):
        board = scoreboard({'mine': frozen, **baselines(frozen)}, mine, seen=seen)
        assert not any('frozen features' in r['embedding'] for r in board)
        assert (
            'Left out: PCA of frozen features, LDA of frozen features (seen gives no training '
            'catalog to fit it to).' in board.protocol
        )
    single = other.subset(np.arange(32) % 4 == 0)  # a photo each
    board = scoreboard(baselines(frozen), mine, seen=single)
    names = [r['embedding'] for r in board]
    assert 'PCA of frozen features' in names and 'LDA of frozen features' not in names
    assert 'Left out: LDA of frozen features (discriminant: expected two' in board.missing
    tuned = base_network((48, 48, 3), 8, backbone='small', weights=None)
    assert not any('frozen features' in name for name in baselines(tuned))


def test_a_network_no_better_than_lda_is_told(shops, frozen):
    mine, _, other = shops
    noise = np.random.default_rng(0).normal(size=(32, 4))
    lda = {'LDA of frozen features': baselines(frozen)['LDA of frozen features']}
    board = scoreboard({'noise': lambda c: noise, **lda}, mine, seen=other)
    best = max(board[1:3], key=lambda r: r['R@1'])
    assert f"of '{best['embedding']}'" in board.warning
    alone = scoreboard({'noise': lambda c: noise}, mine, seen=mine)
    assert alone.missing == ''
