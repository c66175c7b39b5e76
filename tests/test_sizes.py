"What smaller embeddings cost: plain NumPy as the referee, honest intervals, advice, bad input."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triplet_fashion.datasets import draw_catalog
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.sizes import embedding_size


def products(n=80, k=4, d=24, noise=0.5, seed=0):
    "Return embeddings of `n` products with `k` photos each, wide in few directions, and labels."
    rng = np.random.default_rng(seed)
    labels, spread = np.repeat(np.arange(n), k), 0.8 ** np.arange(d)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = rng.normal(size=(n, d))[labels] + rng.normal(size=(n * k, d)) * noise
    return (x * spread @ turn).astype('float32'), labels


def first_is_right(q, ql, g, gl, distance):
    "Return the share of queries whose nearest is of their class, by brute force."
    return np.mean([gl[np.argmin(distance(row, g))] == y for row, y in zip(q, ql)])


def cosine(row, g):
    row, g = row.astype(np.float64), g.astype(np.float64)
    return np.float32(1 - g @ row / np.linalg.norm(g, axis=1) / np.linalg.norm(row))


@pytest.mark.parametrize('seed', range(4))
def test_plain_numpy_agrees(seed):
    x, y = products(seed=seed)
    q, ql, g, gl = x[::4], y[::4], np.delete(x, np.s_[::4], 0), np.delete(y, np.s_[::4])
    found = embedding_size(q, ql, g, gl, dims=(4, 12))
    unit = [v.astype(float) / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, g)]
    axes = np.linalg.svd(unit[1], full_matrices=False)[2].T
    want = {}
    for k in (4, 12, 24):
        few = [u @ axes[:, :k] for u in unit]
        scale = 127 / np.abs(unit[1] @ axes).max()
        eight = [np.clip(np.round(v * scale), -127, 127).astype(np.int32) for v in few]
        want[f'{k} x float32'] = first_is_right(few[0], ql, few[1], gl, cosine)
        want[f'{k} x int8'] = first_is_right(eight[0], ql, eight[1], gl, cosine)
    bits = [u >= unit[1].mean(axis=0) for u in unit]
    want['24 x 1 bit'] = first_is_right(
        bits[0], ql, bits[1], gl, lambda row, g: (row != g).sum(axis=1)
    )
    assert {row.name: row.score for row in found.rows} == pytest.approx(
        {name: value for name, value in want.items() if name != '24 x float32'}
    )
    assert found.full['R@1'] == first_is_right(q, ql, g, gl, cosine)


def test_bytes_of_a_photo():
    x, y = products()
    found = embedding_size(x, y, dims=(8, 3, 64, 24))
    assert [(row.name, row.bytes) for row in found.rows] == [
        ('8 x float32', 32),
        ('3 x float32', 12),
        ('24 x int8', 24),
        ('8 x int8', 8),
        ('3 x int8', 3),
        ('24 x 1 bit', 3),
    ]
    packed = found.packing.pack(x, 8, 'int8')
    assert packed.nbytes == len(x) * 8 and set(np.unique(found.packing.pack(x, 24, '1 bit'))) == {
        -1,
        1,
    }


def test_all_components_search_as_the_embeddings_do():
    x, y = products()
    found = embedding_size(x, y, dims=8)
    turned = found.packing.pack(x, 24, 'float32')
    assert retrieval_metrics(turned, y, names=['R@1', 'MAP']) == pytest.approx(
        retrieval_metrics(x, y, names=['R@1', 'MAP'])
    )


def test_directions_are_never_those_of_the_queries_themselves():
    "Noise of 40 photos lies in 40 directions of 200: fitted to itself, nothing would be lost."
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 2)
    x = rng.normal(size=(20, 200))[y] + 1.2 * rng.normal(size=(40, 200))
    row = next(r for r in embedding_size(x, y, dims=40).rows if r.name == '40 x float32')
    flattering = embedding_size(x, y, dims=40).packing.pack(x, 40, 'float32')
    assert retrieval_metrics(flattering, y, names=['R@1'])['R@1'] == 1
    assert row.score < 1 and row.change.low < 0


def test_no_loss_in_few_queries_is_no_proof():
    x, y = products(n=20, k=2, noise=0.01)
    few, many = embedding_size(x, y, dims=24), embedding_size(*products(n=400, noise=0.01), dims=24)
    assert [row.change.value for row in few.rows[:1] + many.rows[:1]] == [0, 0]
    assert few.rows[0].change.low == -3 / 40 and many.rows[0].change.low == -3 / 1600
    assert few.best is None and 'Keep the full 24 x float32' in few.advice
    assert many.best is not None and many.best.name in many.advice
    assert few.advice in repr(few) and few.advice in few._repr_html_()
    loose = embedding_size(x, y, dims=24, tolerance=0.5)
    assert loose.best.change.low >= -0.5 and '0.5' in repr(loose.tolerance)


def test_the_advice_is_the_smallest_that_surely_will_do():
    found = embedding_size(*products(n=300, noise=0.3), dims=(4, 8, 16))
    fit = [row for row in found.rows if row.change.low >= -0.01]
    assert fit and found.best.bytes == min(row.bytes for row in fit)
    assert any(row.bytes < found.best.bytes for row in found.rows)  # smaller ones are dropped
    again = embedding_size(*products(n=300, noise=0.3), dims=(4, 8, 16))
    assert again.rows == found.rows


def test_some_of_the_queries():
    x, y = products(n=200)
    found = embedding_size(x, y, dims=8, most=100)
    assert found.full['queries'] == 100
    other = embedding_size(x, y, dims=8, most=100, seed=1)
    assert other.full['R@1'] != found.full['R@1']
    with pytest.raises(ValueError, match='most=0: give a whole number from 1'):
        embedding_size(x, y, most=0)


def test_a_catalog_gives_the_labels(tmp_path):
    shop = draw_catalog(tmp_path / 'shop', n_products=4, n_views=3, size=(64, 64))
    x = np.random.default_rng(0).normal(size=(12, 6))
    by_catalog = embedding_size(x, shop, dims=2)
    assert by_catalog.rows == embedding_size(x, shop.labels, dims=2).rows
    among = embedding_size(x, shop, x, shop, dims=2)  # by its file no photo finds itself
    assert among.full['R@1'] == by_catalog.full['R@1'] < 1
    ids = dict(query_ids=shop.ids, gallery_ids=shop.ids)
    assert embedding_size(x, shop.labels, x, shop.labels, dims=2, **ids).full == among.full


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(labels=[0, 0, 1]), 'labels must hold one label a photo'),
        (dict(labels=[0, 1, 2, 3]), 'none of the'),
        (dict(embeddings=np.full((4, 3), np.nan)), 'embeddings: 4 of 4 embeddings hold NaN'),
        (dict(dims=0), 'dims=0: give a whole number from 1'),
        (dict(dims=(2, 1.5)), 'dims=1.5: give a whole number from 1'),
        (dict(gallery=np.eye(4)), 'come together'),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        embedding_size(**dict(embeddings=np.eye(4), labels=[0, 0, 1, 1]) | change)


def test_sizes_need_no_tensorflow():
    code = 'import sys, triplet_fashion.sizes; print("tensorflow" in sys.modules)'
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert out.stdout.strip() == 'False', out.stderr
