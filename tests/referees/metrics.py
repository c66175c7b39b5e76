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
from sklearn.metrics import roc_auc_score
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

def figures(*args, **kw):
    return {names[k]: v for k, v in calc.get_accuracy(*(torch.as_tensor(a).float() if a.ndim == 2 else torch.as_tensor(a)
                                                        for a in args), **kw).items()}

def vote(metric='euclidean'): return KNeighborsClassifier(5, algorithm='brute', metric=metric).fit(gx, gy).score(qx, qy)

same, different = rng.integers(0, 40, 60), rng.integers(15, 60, 90)
near = NearestNeighbors(n_neighbors=4, algorithm='brute').fit(gx).kneighbors(qx)
out = dict(
    gx=gx.tolist(), gy=gy.tolist(), qx=qx.tolist(), qy=qy.tolist(), same=same.tolist(), different=different.tolist(),
    two=figures(qx, qy, gx, gy), one=figures(gx, gy),
    knn=vote(), knn_cosine=vote('cosine'),
    distances=near[0].tolist(), indices=near[1].tolist(),
    auc=roc_auc_score(np.r_[np.ones(60), np.zeros(90)], -np.r_[same, different]))
Path(__file__).with_suffix('.json').write_text(json.dumps(out) + '\n')
print({k: v for k, v in out.items() if not isinstance(v, list)})
