"""A head trained by pytorch-metric-learning, for bench_losses.py to compare with. Runs where torch and pytorch-metric-learning are installed.

    python .ci/pml_head.py FEATURES.npz OUT.npz --loss supcon --seed 0 [--epochs 30] [--rate 3e-4] [--hidden 1024] [--batch 10x8]

FEATURES.npz holds x and y of training, and q; OUT.npz gets the embeddings of both and the seconds that training took (imports, reading and embedding not
counted). A layer of `hidden` with dropout 0.2 (none with 0), 128 numbers; Adam; batches of so many classes x photos, an epoch as many photos as there are,
rounded down to batches.
"""

import argparse, time

import numpy as np
import torch
from pytorch_metric_learning import losses, miners, samplers

WAYS = {  # name: (loss, miner)
    'semihard': lambda: (
        losses.TripletMarginLoss(margin=0.2),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets='semihard'),
    ),
    'hard': lambda: (losses.TripletMarginLoss(margin=0.2), miners.BatchHardMiner()),
    'multi-similarity': lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    'supcon': lambda: (losses.SupConLoss(), None),
}


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('features')
    p.add_argument('out')
    p.add_argument('--loss', choices=WAYS, default='supcon')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--epochs', type=int, default=30)
    p.add_argument('--rate', type=float, default=3e-4)
    p.add_argument('--hidden', type=int, default=1024)
    p.add_argument('--batch', default='10x8')
    o = p.parse_args()
    with np.load(o.features) as z:
        x, y, q = (
            torch.from_numpy(z['x']),
            torch.from_numpy(z['y']).long(),
            torch.from_numpy(z['q']),
        )
    torch.manual_seed(o.seed)
    np.random.seed(o.seed)
    wide = (
        [torch.nn.Linear(x.shape[1], o.hidden), torch.nn.ReLU(), torch.nn.Dropout(0.2)]
        if o.hidden
        else []
    )
    head = torch.nn.Sequential(*wide, torch.nn.Linear(o.hidden or x.shape[1], 128))
    K = int(o.batch.split('x')[1])
    rows_a_step = K * min(int(o.batch.split('x')[0]), len(y.unique()))
    optimizer, (loss, miner) = torch.optim.Adam(head.parameters(), o.rate), WAYS[o.loss]()
    start = time.perf_counter()
    for epoch in range(o.epochs):
        rows = list(
            samplers.MPerClassSampler(
                y.numpy(),
                m=K,
                batch_size=rows_a_step,
                length_before_new_iter=len(y) // rows_a_step * rows_a_step,
            )
        )
        for i in range(0, len(rows), rows_a_step):
            at = torch.as_tensor(np.array(rows[i : i + rows_a_step]))
            codes = torch.nn.functional.normalize(head(x[at]))
            value = loss(codes, y[at], miner(codes, y[at])) if miner else loss(codes, y[at])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    took = time.perf_counter() - start
    head.eval()
    with torch.no_grad():
        x, q = (torch.nn.functional.normalize(head(o)).numpy() for o in (x, q))
    np.savez(o.out, x=x, q=q, seconds=took)


if __name__ == '__main__':
    main()
