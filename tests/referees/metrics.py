"""Makes metrics.json beside it: retrieval and verification figures of other libraries for a small fixed input.

    pip install pytorch-metric-learning scikit-learn && python tests/referees/metrics.py
"""
import json
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score, f1_score, ndcg_score, precision_score, recall_score, roc_auc_score, roc_curve
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

rng = np.random.default_rng(0)
# sizes differ, class 7 has one photo in the gallery and class 8 absent from it
gy = np.concatenate([np.repeat(np.arange(7), [2, 3, 5, 8, 8, 9, 12]), [7]])
qy = np.concatenate([np.arange(7).repeat(4), [7, 8, 8]])
centres = rng.normal(size=(9, 6))*14
gx, qx = (np.round(centres[y] + rng.normal(size=(len(y), 6))*22, 2) for y in (gy, qy))

knn = CustomKNN(LpDistance(normalize_embeddings=False))
names = dict(precision_at_1='R@1', mean_average_precision_at_r='MAP@R', r_precision='R-precision', mean_reciprocal_rank='MRR')
calc = AccuracyCalculator(include=tuple(names), k=None, knn_func=knn)
whole = {'mean_average_precision': 'MAP'}   # needs all of the gallery ranked

def full_map(own):
    "pytorch-metric-learning on the whole ranking: MAP, and the mean over classes of the mean of each"
    args, k = ((gx, gy), len(gx) - 1) if own else ((qx, qy, gx, gy), len(gx))
    found = {}
    for name, per_class in (('MAP', False), ('macro MAP', True)):
        it = AccuracyCalculator(include=tuple(whole), k=k, knn_func=knn, avg_of_avgs=per_class)
        found[name] = it.get_accuracy(*(torch.as_tensor(a).float() if a.ndim == 2 else torch.as_tensor(a) for a in args))['mean_average_precision']
    return found

def figures(*args, **kw):
    return {names[k]: v for k, v in calc.get_accuracy(*(torch.as_tensor(a).float() if a.ndim == 2 else torch.as_tensor(a)
                                                        for a in args), **kw).items()}

def vote(metric='euclidean'): return KNeighborsClassifier(5, algorithm='brute', metric=metric).fit(gx, gy).score(qx, qy)

def ranked(x, y, g, gy, own):
    "scikit-learn on each query's full ranking: nDCG@K, and average precision of the first R times the share found, which is AP@R"
    out = {f'nDCG@{k}': [] for k in (1, 5, 10, 20)} | {'MAP@R': [], 'MAP': [], 'MAP@1': [], 'MAP@5': [], 'MAP@20': []}
    for i, (row, label) in enumerate(zip(x, y)):
        keep = np.arange(len(g)) != (i if own else -1)
        hit, score = (gy == label)[keep], -np.linalg.norm(g[keep] - row, axis=1)
        R = hit.sum()
        if not R: continue
        for k in (1, 5, 10, 20): out[f'nDCG@{k}'].append(ndcg_score([hit], [score], k=k))
        first = np.argsort(-score, kind='stable')[:R]
        out['MAP'].append(average_precision_score(hit, score))
        order = np.argsort(-score, kind='stable')
        for k in (1, 5, 20):
            h = hit[order[:k]]
            out[f'MAP@{k}'].append(average_precision_score(h, score[order[:k]])*h.sum()/min(R, k) if h.any() else 0)
        out['MAP@R'].append(average_precision_score(hit[first], score[first])*hit[first].sum()/R if hit[first].any() else 0)
    return {f: float(np.mean(v)) for f, v in out.items()}

same, different = rng.integers(0, 40, 60), rng.integers(15, 60, 90)
near = NearestNeighbors(n_neighbors=4, algorithm='brute').fit(gx).kneighbors(qx)
out = dict(
    gx=gx.tolist(), gy=gy.tolist(), qx=qx.tolist(), qy=qy.tolist(), same=same.tolist(), different=different.tolist(),
    two=figures(qx, qy, gx, gy), one=figures(gx, gy),
    knn=vote(), knn_cosine=vote('cosine'),
    distances=near[0].tolist(), indices=near[1].tolist(),
    ranked_two=ranked(qx, qy, gx, gy, False), ranked_one=ranked(gx, gy, gx, gy, True),
    full_two=full_map(False), full_one=full_map(True),
    auc=roc_auc_score(np.r_[np.ones(60), np.zeros(90)], -np.r_[same, different]))
truth, score = np.r_[np.ones(60), np.zeros(90)], -np.r_[same, different]
match, found, at = roc_curve(truth, score, drop_intermediate=False)
steps = np.unique(np.r_[same, different]) + .5
f1 = [f1_score(truth, -score < t) for t in steps]
decided = {str(t): [float(f(truth, -score < t)) for f in (precision_score, recall_score, f1_score)] for t in (10.5, 20.5, 30.5, 45.5)}
out |= dict(decided=decided, roc=[match.tolist(), found.tolist()], f1=max(f1), f1_threshold=float(steps[int(np.argmax(f1))]),
            fnmr_at={str(r): float(1 - found[match <= r].max()) for r in (0, .01, .1, .3)})
Path(__file__).with_suffix('.json').write_text(json.dumps(out) + '\n')
print({k: v for k, v in out.items() if not isinstance(v, list)})
