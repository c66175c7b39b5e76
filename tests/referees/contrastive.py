"""Make contrastive.npz: values and gradients of pytorch-metric-learning for test_contrastive.py.

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0      # in an environment of its own
    python tests/referees/contrastive.py
"""
from pathlib import Path
import numpy as np, torch
from pytorch_metric_learning import distances, losses, miners

rng = np.random.default_rng(21)
x, labels = rng.normal(size=(24, 6)), np.repeat(np.arange(7), [4, 4, 4, 4, 4, 3, 1])
l, out = torch.tensor(labels), {}
found = {'supcon|0.1': (None, losses.SupConLoss(temperature=.1)), 'supcon|0.5': (None, losses.SupConLoss(temperature=.5)),
         'ms|all': (None, losses.MultiSimilarityLoss(alpha=2, beta=50, base=.5)), 'ms|other': (None, losses.MultiSimilarityLoss(alpha=5, beta=20, base=.2)),
         'ms|mined': (miners.MultiSimilarityMiner(epsilon=.1), losses.MultiSimilarityLoss(alpha=2, beta=50, base=.5))}
for key, (miner, loss) in found.items():
    t = torch.tensor(x, requires_grad=True)
    value = loss(t, l, miner(t, l) if miner else None)
    value.backward()
    out[key] = np.concatenate([[value.item()], t.grad.numpy().ravel()])
# a memory over five batches of six: there the batch itself is part of the memory, so it holds 18 where ours holds 12
order = rng.permutation(24)
order = np.concatenate([order, order[:6]])
for name, loss in dict(supcon=losses.SupConLoss(temperature=.1), ms=losses.MultiSimilarityLoss(alpha=2, beta=50, base=.5),
                       triplet=losses.TripletMarginLoss(margin=.4, distance=distances.LpDistance(normalize_embeddings=False))).items():
    memory = losses.CrossBatchMemory(loss, embedding_size=6, memory_size=18)
    out[f'memory|{name}'] = np.array([memory(torch.tensor(x[i], dtype=torch.float32), l[i]).item() for i in order.reshape(5, 6)])
np.savez_compressed(Path(__file__).with_name('contrastive.npz'), x=x, labels=labels, order=order, **out)
for k, v in out.items(): print(k, v[:5])
