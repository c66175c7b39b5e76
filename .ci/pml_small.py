"""The network 'small' trained from scratch by pytorch-metric-learning, for bench_scratch.py to compare with.

    python .ci/pml_small.py PHOTOS.npz OUT.npz --loss hard --seed 0 --steps 480 [--rate 2e-3] [--P 16] [--K 4] [--decay 0]

PHOTOS.npz: x, uint8 (n, h, w, 3), and y of training, q to be embedded; OUT.npz: embeddings of q, and seconds of training. Batches of P products x K photos,
random crop, flip and light as strong as triplet_fashion's, Adam (AdamW where --decay, of weights, is above 0), the rate falls along a cosine.
"""

import argparse, time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from pytorch_metric_learning import losses, miners, samplers

WAYS = {
    'semihard': lambda: (
        losses.TripletMarginLoss(margin=0.2),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets='semihard'),
    ),
    'hard': lambda: (losses.TripletMarginLoss(margin=0.2), miners.BatchHardMiner()),
    'multi-similarity': lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    'supcon': lambda: (losses.SupConLoss(), None),
}


class Small(nn.Module):
    def __init__(self, out, widths=(32, 64, 128, 256)):
        super().__init__()

        def block(i, o):
            return nn.Sequential(
                nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o, momentum=0.1), nn.ReLU()
            )

        self.body = nn.Sequential(*(block(i, o) for i, o in zip((3, *widths), widths)))
        self.head = nn.Linear(2 * widths[-1], out)

    def forward(self, x):
        x = self.body(x / 127.5 - 1)
        return F.normalize(self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))


def augmented(x, crop=0.1, light=0.1):
    n, u = len(x), torch.rand(7, len(x))
    h, w = 1 - crop * u[0], 1 - crop * u[1]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(u[4] < 0.5, -w, w), h
    theta[:, 0, 2], theta[:, 1, 2] = (2 * u[3] - 1) * (1 - w), (2 * u[2] - 1) * (1 - h)
    x = F.grid_sample(
        x,
        F.affine_grid(theta, x.shape, align_corners=False),
        align_corners=False,
        padding_mode='border',
    )
    gain, shift, mean = (
        *((1 + light * (2 * v - 1)).view(-1, 1, 1, 1) for v in u[5:7]),
        x.mean((1, 2, 3), keepdim=True),
    )
    return ((x - mean) * gain + mean * shift).clamp(0, 255)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('photos')
    p.add_argument('out')
    p.add_argument('--loss', choices=WAYS, default='hard')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--steps', type=int, default=480)
    p.add_argument('--rate', type=float, default=2e-3)
    p.add_argument('--P', type=int, default=16)
    p.add_argument('--K', type=int, default=4)
    p.add_argument('--decay', type=float, default=0.0)
    o = p.parse_args()
    with np.load(o.photos) as z:
        x, y, q = (
            torch.from_numpy(z['x']).permute(0, 3, 1, 2),
            z['y'],
            torch.from_numpy(z['q']).permute(0, 3, 1, 2),
        )
    torch.manual_seed(o.seed)
    np.random.seed(o.seed)
    net, labels, b = Small(128), torch.from_numpy(y).long(), o.P * o.K
    optimizer, (loss, miner) = (
        torch.optim.AdamW(net.parameters(), o.rate, weight_decay=o.decay),
        WAYS[o.loss](),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, o.steps)
    rows = []
    while len(rows) < o.steps * b:
        rows += list(
            samplers.MPerClassSampler(
                y, m=o.K, batch_size=b, length_before_new_iter=len(y) // b * b
            )
        )
    start = time.perf_counter()
    for i in range(o.steps):
        at = torch.as_tensor(np.array(rows[i * b : (i + 1) * b]))
        codes = net(augmented(x[at].float()))
        value = (
            loss(codes, labels[at], miner(codes, labels[at])) if miner else loss(codes, labels[at])
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    took = time.perf_counter() - start
    net.eval()
    with torch.no_grad():
        q = torch.cat([net(c.float()) for c in q.split(64)]).numpy()
    np.savez(o.out, q=q, seconds=took)


if __name__ == '__main__':
    main()
