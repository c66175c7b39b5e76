"""Make proxies.npz: values and gradients of pytorch-metric-learning for test_proxies.py and test_contrastive.py.

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0      # in an environment of its own
    python tests/referees/proxies.py
"""
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import distances, losses

rng = np.random.default_rng(22)
x, labels = rng.normal(size=(20, 6)), rng.integers(0, 7, 20)   # some of eight products are not in the batch
proxies = rng.normal(size=(8, 3, 6))
out = {}


def keep(key, value, *leaves):
    "Keep a value and its gradients."
    value.backward()
    out[key] = np.concatenate([[value.item()], *(leaf.grad.numpy().ravel() for leaf in leaves)])


for margin, alpha in ((0.1, 32), (0.3, 5)):
    loss = losses.ProxyAnchorLoss(8, 6, margin=margin, alpha=alpha)
    loss.proxies = torch.nn.Parameter(torch.tensor(proxies[:, 0]))
    t = torch.tensor(x, requires_grad=True)
    keep(f'anchor|{margin}|{alpha}', loss(t, torch.tensor(labels)), t, loss.proxies)

for K, margin, scale in ((3, 0.5, 64), (2, 0.3, 8), (1, 0.8, 16)):
    loss = losses.SubCenterArcFaceLoss(
        num_classes=8, embedding_size=6, margin=np.degrees(margin), scale=scale, sub_centers=K)
    loss.W = torch.nn.Parameter(torch.tensor(proxies[:, :K].reshape(-1, 6).T.copy()))
    t = torch.tensor(x, requires_grad=True)
    value = loss(t, torch.tensor(labels))
    value.backward()
    of_proxies = loss.W.grad.numpy().T
    out[f'arcface|{K}|{margin}|{scale}'] = np.concatenate([[value.item()], t.grad.numpy().ravel(), of_proxies.ravel()])

# between two sets: queries are anchors, the gallery is what they are compared with
is_query = np.arange(20) % 3 == 0
found = {
    'supcon': losses.SupConLoss(temperature=0.1),
    'triplet': losses.TripletMarginLoss(margin=0.4, distance=distances.LpDistance(normalize_embeddings=False)),
    'ms': losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)}
for key, loss in found.items():
    t = torch.tensor(x, requires_grad=True)
    l = torch.tensor(labels)
    keep(f'across|{key}', loss(t[is_query], l[is_query], ref_emb=t[~is_query], ref_labels=l[~is_query]), t)

np.savez_compressed(Path(__file__).with_name('proxies.npz'), x=x, labels=labels, proxies=proxies, is_query=is_query, **out)
for k, v in out.items():
    print(k, v[:4])
