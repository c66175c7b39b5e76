"""Which photos meet: that they repeat by seed, that all come, and who takes the place of the
unreadable. No files, no TensorFlow."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.photos.sampling import (
    PKSampler,
    TripletSampler,
    draw_triplets,
    draw_without_replacement,
    replace_unreadable_groups,
)

SIZES = st.lists(st.integers(1, 7), min_size=2, max_size=9).filter(lambda s: max(s) > 1)
PK = dict(
    sizes=st.lists(st.integers(2, 7), min_size=2, max_size=8),
    P=st.integers(2, 8),
    K=st.integers(2, 5),
    seed=st.integers(0, 99),
)
SAMPLERS = [
    lambda y, **kw: TripletSampler(y, 12, **kw),
    lambda y, **kw: PKSampler(y, 4, 3, **kw),
    lambda y, **kw: PKSampler(y, 4, 3, steps=2, categories=list('ababababab'), **kw),
]


def shuffled(sizes, seed):
    "Class ids, in no order, of products with so many photos."
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def pk(sizes, P, K, seed, **kw):
    "A sampler of as many products as there are."
    return PKSampler(shuffled(sizes, seed), min(P, len(sizes)), K, seed=seed, **kw)


def rows(sampler, n, first=0):
    "Positions of n batches, from number `first` on, whatever their epoch."
    return [sampler.batch(*divmod(i, sampler.steps)).positions for i in range(first, first + n)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(i, j) for i, j in zip(a, b))


# ---- triplets


@settings(max_examples=80, deadline=None, derandomize=True)
@given(sizes=SIZES, seed=st.integers(0, 99), batch_size=st.integers(1, 9))
def test_triplets(sizes, seed, batch_size):
    y = 3 * shuffled(sizes, seed)  # class ids with gaps
    able = np.flatnonzero(np.bincount(y)[y] > 1).tolist()
    sampler = TripletSampler(y, batch_size, seed=seed)
    for epoch in range(3):
        drawn = np.concatenate(rows(sampler, sampler.steps, epoch * sampler.steps))
        a, p, n = drawn.T
        assert (a != p).all() and (y[a] == y[p]).all() and (y[a] != y[n]).all()
        assert sorted(a) == able == sorted(able[: sampler.photos])
    assert sampler.coverage['photos'] == sampler.steps == -(-len(able) // batch_size)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=SIZES, seed=st.integers(0, 99), batch_size=st.integers(1, 9), steps=st.integers(1, 5))
def test_every_photo_is_an_anchor_within_coverage(sizes, seed, batch_size, steps):
    "Epochs of any length: the shuffles run on."
    sampler = TripletSampler(shuffled(sizes, seed), batch_size, steps, seed)
    seen = np.concatenate(rows(sampler, sampler.coverage['photos']))[:, 0]
    assert len(set(seen)) == sampler.photos


def test_positives_and_negatives_are_uniform():
    y = np.array([5, 5, 5, 5, 0, 9, 9])
    anchors = np.tile([0, 2, 5], 20_000)
    a, p, n = draw_triplets(anchors, y, np.random.default_rng(0)).T
    for anchor, mates in [(0, (1, 2, 3)), (2, (0, 1, 3)), (5, (6,))]:
        shares = [(p[a == anchor] == j).mean() for j in mates]
        assert np.allclose(shares, 1 / len(mates), atol=0.02)
    assert np.allclose([(n[a == 5] == j).mean() for j in range(5)], 0.2, atol=0.02)


# ---- P products x K photos


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), k=st.integers(1, 9), draws=st.integers(1, 12), seed=st.integers(0, 99))
def test_drawing_without_replacement(n, k, draws, seed):
    rng, rest, items, out = np.random.default_rng(seed), np.array([], int), np.arange(n) * 2, []
    for _ in range(draws):
        drawn, rest = draw_without_replacement(rest, items, k, rng)
        assert len(drawn) == k and len(set(drawn)) == min(n, k) and set(drawn) <= set(items)
        out += list(drawn)
    if k <= n:
        for i in range(0, len(out) - n + 1, n):
            assert sorted(out[i : i + n]) == list(items)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(**PK, steps=st.integers(1, 9))
def test_products_and_photos_of_a_batch(sizes, P, K, steps, seed):
    sampler = pk(sizes, P, K, seed)
    y, P = sampler.labels, sampler.P
    drawn = np.reshape(rows(sampler, steps), (steps, P, K))
    for batch in drawn:
        owners = y[batch]
        assert (owners == owners[:, :1]).all() and len(set(owners[:, 0])) == P
        for photos, c in zip(batch, owners[:, 0]):
            assert len(set(photos)) == min(K, sizes[c])
    times = np.bincount(y[drawn][:, :, 0].ravel(), minlength=len(sizes))
    assert times.max() - times.min() <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**PK, n_kinds=st.integers(0, 3), each=st.integers(1, 4), steps=st.integers(1, 5))
def test_coverage_is_what_it_says(sizes, P, K, seed, n_kinds, each, steps):
    kw = (
        dict(categories=[f'kind {c % n_kinds}' for c in range(len(sizes))], per_category=each)
        if n_kinds
        else {}
    )
    sampler = pk(sizes, P, K, seed, steps=steps, **kw)
    y, said = sampler.labels, sampler.coverage
    assert set(y[np.concatenate(rows(sampler, said['products']))]) == set(range(len(sizes)))
    assert set(np.concatenate(rows(sampler, said['photos']))) == set(range(len(y)))
    if not n_kinds:
        assert said['products'] == -(-len(sizes) // sampler.P)


def test_categories_share_a_batch_equally():
    y = np.repeat(np.arange(40), 3)
    kinds = ['rare'] * 2 + ['common'] * 30 + ['some'] * 8

    def of(positions):
        return [kinds[c] for c in y[positions][::2]]

    for batch in rows(PKSampler(y, 6, 2, categories=kinds, per_category=2), 100):
        assert len(set(y[batch])) == 6
        assert sorted(of(batch)) == ['common'] * 2 + ['rare'] * 2 + ['some'] * 2
    two = rows(PKSampler(y, 4, 2, categories=kinds, per_category=2), 99)
    drawn = [k for batch in two for k in of(batch)]
    assert [drawn.count(k) for k in ('rare', 'common', 'some')] == [132] * 3


def test_products_with_one_photo_are_left_out():
    sampler = PKSampler([0, 0, 1, 2, 2, 5, 5], 3, 2)
    assert sampler.products.tolist() == [0, 2, 5] and sampler.photos == 6
    assert 2 not in np.concatenate(rows(sampler, 20))


# ---- the same again: from any place, in shards, on any machine


@settings(max_examples=30, deadline=None, derandomize=True)
@given(**PK, at=st.integers(0, 20), n=st.integers(1, 9))
def test_batches_from_any_place_are_the_same_batches(sizes, P, K, seed, at, n):
    sampler = pk(sizes, P, K, seed)
    whole = rows(sampler, at + n)
    assert same(rows(sampler, n, at), whole[at:])  # back, then on
    assert same(rows(pk(sizes, P, K, seed), n, at), whole[at:])


LABELS = shuffled([3, 5, 4, 6, 2, 4, 6, 5, 9, 4], 0)  # 48 photos


@pytest.mark.parametrize('make', SAMPLERS, ids=['triplets', 'pk', 'categories'])
def test_same_seed_same_batches(make):
    assert same(rows(make(LABELS, seed=3), 9), rows(make(LABELS.tolist(), seed=3), 9))
    assert not same(rows(make(LABELS, seed=3), 9), rows(make(LABELS, seed=4), 9))
    assert not same(rows(make(LABELS), 2), rows(make(LABELS), 2, first=2))


@pytest.mark.parametrize('n', [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize('make', SAMPLERS, ids=['triplets', 'pk', 'categories'])
def test_shards_are_the_batch(make, n):
    whole = make(LABELS, seed=3)
    steps = whole.steps
    shards = [rows(whole.shard(i, n), steps) for i in range(n)]
    given = [rows(make(LABELS, seed=3, shard=(i, n)), steps) for i in range(n)]
    for i, batch in enumerate(rows(whole, steps)):
        assert np.array_equal(np.concatenate([s[i] for s in shards]), batch)
        assert np.array_equal(np.concatenate([s[i] for s in given]), batch)
    assert whole.count == 1  # and it is what it was


@pytest.mark.parametrize('make', SAMPLERS, ids=['triplets', 'pk', 'categories'])
def test_a_state_goes_on_where_it_was(make):
    sampler = make(LABELS, seed=3)
    for done in (0, 1, 5, 7):
        other = make(LABELS, seed=8, ids=None)
        rows(other, 3)  # it has been used before
        other.load_state_dict(json.loads(json.dumps(sampler.state_dict(done))))
        assert other.seed == 3 and other.epoch * other.steps + other.step == done
        assert same(rows(other, 4, first=done), rows(sampler, 4, first=done))
        assert other.state_dict(2) == sampler.state_dict(done + 2)


def test_a_state_of_other_photos_or_settings_is_refused():
    state = PKSampler(LABELS, 4, 3).state_dict(1)
    for other in (
        PKSampler(LABELS, 4, 2),
        PKSampler(LABELS[:-1], 4, 3),
        PKSampler(LABELS, 4, 3, steps=9),
        PKSampler(LABELS, 4, 3, ids=['a']),
        TripletSampler(LABELS, 12),
    ):
        with pytest.raises(ValueError, match='other photos or settings'):
            other.load_state_dict(state)
    for odd in ({}, dict(epoch=1), state | {'more': 1}):
        with pytest.raises(ValueError, match='state is what'):
            PKSampler(LABELS, 4, 3).load_state_dict(odd)
    for key, value in dict(seed=-1, epoch=-1, step=99).items():
        with pytest.raises(ValueError, match=key):
            PKSampler(LABELS, 4, 3).load_state_dict(state | {key: value})


def test_names_of_photos_are_asked_for_only_where_a_state_is():
    asked = []
    sampler = TripletSampler(LABELS, 4, ids=lambda: asked.append(1) or ['a'])
    sampler.batch(0, 0)
    assert not asked
    assert sampler.state_dict() == TripletSampler(LABELS, 4, ids=['a']).state_dict() and asked


@pytest.mark.parametrize('make', SAMPLERS, ids=['triplets', 'pk', 'categories'])
def test_passes_may_overlap(make):
    "Two epochs by turns, and many threads at once."
    want, sampler = rows(make(LABELS), 12), make(LABELS)
    order = [0, 8, 1, 9, 2, 10, 3, 11]
    assert same([rows(sampler, 1, i)[0] for i in order], [want[i] for i in order])
    got = {}

    def take(i):
        got[i] = rows(sampler, 12)

    threads = [threading.Thread(target=take, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(same(got[i], want) for i in range(4))


def test_only_whole_batches_of_triplets_are_shared_out():
    whole = TripletSampler(LABELS, 10)
    shards = [whole.shard(i, 2) for i in range(2)]
    assert (whole.steps, whole.anchors) == (5, 48) and {(s.steps, s.anchors) for s in shards} == {
        (4, 40)
    }
    anchors = [
        np.concatenate(rows(s, 24))[:, 0] for s in shards
    ]  # what is left over comes in the next epoch
    assert np.bincount(np.concatenate(anchors)).tolist() == [5] * 48


def test_seeds_of_augmentation_are_those_of_the_whole_batch():
    sampler = TripletSampler(LABELS, 4)
    batch = sampler.shard(1, 2).batch(2, 3)
    assert batch.random_seed(7) == sampler.batch(2, 3).random_seed(7) == (2_000_013, 3)


def test_sampling_needs_no_tensorflow():
    code = """
import sys, triplet_fashion.photos.sampling
print({'tensorflow', 'keras', 'PIL'} & set(sys.modules))"""
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == 'set()'
    )


# ---- errors

WRONG = [
    ('P=2.5', lambda: PKSampler(LABELS, 2.5)),
    ('P=0', lambda: PKSampler(LABELS, 0)),
    ('K=True', lambda: PKSampler(LABELS, 2, True)),
    ('steps=0', lambda: PKSampler(LABELS, steps=0)),
    ('seed=-1', lambda: PKSampler(LABELS, seed=-1)),
    ('P=1, K=4', lambda: PKSampler(LABELS, 1)),
    ('P=11, but .* has 10 products', lambda: PKSampler(LABELS, 11)),
    ('per_category=2 has no effect', lambda: PKSampler(LABELS, per_category=2)),
    ('categories has 3 entries', lambda: PKSampler(LABELS, categories=list('abc'))),
    ('per_category=0', lambda: PKSampler(LABELS, categories=list('ababababab'), per_category=0)),
    ('a batch that n divides', lambda: PKSampler(LABELS, 3, 3, shard=(0, 2))),
    ('shard=.2, 2.', lambda: PKSampler(LABELS).shard(2, 2)),
    ('batch_size=None', lambda: TripletSampler(LABELS, None)),
    ('batch_size=64, but an epoch has 48', lambda: TripletSampler(LABELS, 64, shard=(0, 2))),
    ('first_step=12, .* give 0 to 11', lambda: TripletSampler(LABELS, 4).start_at(step=12)),
    ('first_epoch=-1', lambda: TripletSampler(LABELS, 4).start_at(epoch=-1)),
    (r'labels\[1\] is -1', lambda: TripletSampler([0, -1, 0], 4)),
    ('class ids', lambda: PKSampler(['a', 'a', 'b', 'b'], 2, 2)),
]


@pytest.mark.parametrize('text, make', WRONG, ids=[t for t, _ in WRONG])
def test_what_cannot_be_is_named(text, make):
    with pytest.raises(ValueError, match=text):
        make()


# ---- unreadable photos


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), sizes=SIZES, seed=st.integers(0, 99))
def test_a_triplet_stays_a_triplet(data, sizes, seed):
    y = shuffled(sizes, seed)
    sampler = TripletSampler(y, 12, steps=1, seed=seed)
    drawn = sampler.batch(0, 0).positions
    lost = dict.fromkeys(data.draw(st.sets(st.integers(0, len(y) - 1), min_size=1)))
    count = np.bincount(np.delete(y, list(lost)), minlength=len(sizes))
    if count.max() < 2 or (count > 0).sum() < 2:
        if not np.isin(drawn, list(lost)).any():
            return
        with pytest.raises(ValueError, match='no two products are left'):
            sampler.replace(drawn, lost)
        return
    out = sampler.replace(drawn, lost)
    a, p, n = out.T
    assert not np.isin(out, list(lost)).any()
    assert (a != p).all() and (y[a] == y[p]).all() and (y[a] != y[n]).all()
    readable = ~np.isin(drawn, list(lost)).any(1)
    assert np.array_equal(out[readable], drawn[readable])
    stays = count[y[drawn[:, 0]]] >= 2
    assert np.array_equal(y[a][stays], y[drawn[:, 0]][stays])
    assert np.array_equal(sampler.replace(out, {}), out)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(2, 7), min_size=3, max_size=8),
    P=st.integers(2, 8),
    K=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_p_products_stay_p_products(data, sizes, P, K, seed):
    sampler = pk(sizes, P, K, seed)
    y, P, drawn = sampler.labels, sampler.P, sampler.batch(0, 0).positions
    lost = dict.fromkeys(data.draw(st.sets(st.integers(0, len(y) - 1), min_size=1)))
    count = np.bincount(np.delete(y, list(lost)), minlength=len(sizes))
    if (count >= 2).sum() < 2:
        if np.isin(drawn, list(lost)).any():
            with pytest.raises(ValueError, match='is left with two'):
                sampler.replace(drawn, lost)
        return
    out = sampler.replace(drawn, lost).reshape(P, K)
    owners = y[out]
    assert not np.isin(out, list(lost)).any() and (owners == owners[:, :1]).all()
    for group, was in zip(out, y[drawn.reshape(P, K)[:, 0]]):
        assert len(set(group)) >= 2 and (y[group[0]] == was or count[was] < 2)
        if K <= count[y[group[0]]] and y[group[0]] == was:
            assert len(set(group)) == K
    if (count >= 2).sum() >= P:
        assert len(set(owners[:, 0])) == P


def test_a_replacement_is_new_to_the_batch_where_there_is_one():
    y = np.repeat(np.arange(4), 3)
    assert replace_unreadable_groups(np.array([0, 1, 3, 4]), {1}, y).tolist() == [0, 2, 3, 4]
    assert replace_unreadable_groups(np.array([0, 1, 2]), {1}, y)[1] in (
        0,
        2,
    )  # all of them are in it
