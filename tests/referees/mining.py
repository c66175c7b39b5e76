"""Make mining.npz: values and gradients of pytorch-metric-learning for test_mining.py.

    pip install torch==2.13.0 pytorch-metric-learning==2.9.0      # in an environment of its own
    python tests/referees/mining.py
"""
from pathlib import Path
import numpy as np, torch
from pytorch_metric_learning import distances, losses, miners, reducers

rng = np.random.default_rng(20)
x, labels = rng.random((24, 6)), np.repeat(np.arange(7), [4, 4, 4, 4, 4, 3, 1])
margin, out = 0.15, {}
for power in (1, 2):
    distance = distances.LpDistance(normalize_embeddings=False, p=2, power=power)
    found = dict(
        all=(None, reducers.MeanReducer()),
        nonzero=(None, reducers.AvgNonZeroReducer()),
        semihard=(miners.TripletMarginMiner(margin, 'semihard', distance=distance), reducers.MeanReducer()),
        hard=(miners.BatchHardMiner(distance=distance), reducers.MeanReducer()),
        easy=(miners.BatchEasyHardMiner('easy', 'hard', distance=distance), reducers.MeanReducer()))
    for mining, (miner, reducer) in found.items():
        for soft in (False, True):
            if soft and mining == 'nonzero': continue      # its softplus is never zero: the same as all
            loss = losses.TripletMarginLoss(0. if soft else margin, smooth_loss=soft, distance=distance, reducer=reducer)
            t = torch.tensor(x, requires_grad=True)
            l = torch.tensor(labels)
            value = loss(t, l, miner(t, l) if miner else None)
            value.backward()
            key = f'{mining}|{int(soft)}|{int(power == 2)}'
            out[key] = np.concatenate([[value.item()], t.grad.numpy().ravel()])
np.savez_compressed(Path(__file__).with_name('mining.npz'), x=x, labels=labels, margin=margin, **out)
for k, v in out.items(): print(k, v[0], np.abs(v[1:]).max())
