"""Training steps of PyTorch, for bench_steps.py to compare with. Runs where torch is installed; weights are random, which a clock does not see.

    python .ci/torch_steps.py resnet|resnet-bf16|lite0 --photos 48 --steps 3

Prints JSON: seconds of each step, the first among them. channels_last, Adam.
    resnet       ResNet50, 1,024 relu, 128 sigmoid; the lossless triplet loss of 16 triplets, gradients clipped to norm 5; -bf16: under autocast
    lite0        EfficientNet-Lite0 whose last five blocks and last convolution learn, BatchNorm as it is, 128 numbers, batch-hard triplets on the unit sphere
"""

import argparse, json, time

import torch
from torch import nn
from torch.nn import functional as F


def conv(i, o, k, s=1, groups=1, act=None):
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
        *([act()] if act else []),
    )


class Added(nn.Module):
    def __init__(self, body, short=None, act=None):
        super().__init__()
        self.body, self.short, self.act = (
            body,
            short or nn.Identity(),
            act() if act else nn.Identity(),
        )

    def forward(self, x):
        return self.act(self.body(x) + self.short(x))


def resnet50():
    layers, i = [conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)], 64
    for n, w, s in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for k in range(n):
            t = s if k == 0 else 1
            body = nn.Sequential(
                conv(i, w, 1, t, act=nn.ReLU), conv(w, w, 3, act=nn.ReLU), conv(w, 4 * w, 1)
            )
            layers.append(Added(body, conv(i, 4 * w, 1, t) if k == 0 else None, nn.ReLU))
            i = 4 * w
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(i, 1024),
        nn.ReLU(),
        nn.Linear(1024, 128),
        nn.Sigmoid(),
    )


def lite0():
    "(lower part, upper part)"
    blocks, i = [conv(3, 32, 3, 2, act=nn.ReLU6)], 32
    for t, k, s, o, n in (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ):
        for j in range(n):
            body = nn.Sequential(
                *([conv(i, t * i, 1, act=nn.ReLU6)] if t > 1 else []),
                conv(t * i, t * i, k, s if j == 0 else 1, t * i, nn.ReLU6),
                conv(t * i, o, 1),
            )
            blocks.append(Added(body) if i == o and (s == 1 or j) else body)
            i = o
    return nn.Sequential(*blocks[:-5]), nn.Sequential(
        *blocks[-5:],
        conv(i, 1280, 1, act=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1024),
        nn.ReLU(),
        nn.Linear(1024, 128),
    )


def lossless(codes):
    a, p, n = codes.float().chunk(3)
    near, far = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
    return (-torch.log(1 - near / 128 + 1e-8) - torch.log(far / 128 + 1e-8)).mean()


def batch_hard(codes, labels, margin=0.5):
    codes = F.normalize(codes.float())
    d = 2 - 2 * codes @ codes.T
    same = labels[:, None] == labels
    return F.relu((d * same).amax(1) - (d + 4.0 * same).amin(1) + margin).mean()


def steps(what, photos, n):
    torch.manual_seed(0)
    x = (torch.rand(photos, 3, 224, 224) * 2 - 1).to(memory_format=torch.channels_last)
    half, took = what.endswith('-bf16'), []
    if what == 'lite0':
        lower, upper = (m.to(memory_format=torch.channels_last) for m in lite0())
        lower.eval()
        upper.train()
        for m in upper.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
                m.requires_grad_(False)
        labels = torch.arange(photos) // 4

        def value():
            with torch.no_grad():
                y = lower(x)
            return batch_hard(upper(y), labels)

        net = upper
    else:
        net = resnet50().to(memory_format=torch.channels_last).train()

        def value():
            return lossless(net(x))

    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-4)
    for _ in range(n + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = value()
        loss.backward()
        if what != 'lite0':
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        took.append(time.perf_counter() - start)
    return took


if __name__ == '__main__':
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('what', choices=['resnet', 'resnet-bf16', 'lite0'])
    p.add_argument('--photos', type=int, default=48)
    p.add_argument('--steps', type=int, default=3)
    o = p.parse_args()
    print(json.dumps(steps(o.what, o.photos, o.steps)))
