"""The peer of `scgpt_step`: one training step of a stack of scGPT's shapes in eager PyTorch.

Frozen post-norm blocks without affine norms, fused attention, bottleneck adapters in the first
half, a linear head on the first position, Adam. Nothing of a model that this does not need to have
the cost of one: no value encoder, no padding, no clipping. Prints median wall seconds and CPU
seconds of a step, and the peak resident size in MiB.
"""

import argparse
import resource
import statistics
import time

import torch
import torch.nn.functional as F

WIDTH, HEADS, BLOCKS, VOCABULARY, BOTTLENECK, CLASSES = 512, 8, 12, 60697, 128, 18
DROPOUT = 0.2


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--attention-dropout", type=float, default=0.0)
    return parser.parse_args()


class Stack:
    def __init__(self, options):
        self.options = options
        self.kind = torch.float32 if options.dtype == "f32" else torch.bfloat16
        self.table = self.frozen(VOCABULARY, WIDTH)
        self.blocks = [
            {
                "qkv": self.layer(3 * WIDTH),
                "out": self.layer(WIDTH),
                "up": self.layer(WIDTH),
                "down": self.layer(WIDTH),
            }
            for _ in range(BLOCKS)
        ]
        self.adapters = [
            (self.trained(BOTTLENECK, WIDTH), self.trained(WIDTH, BOTTLENECK))
            for _ in range(BLOCKS // 2)
        ]
        self.head = torch.nn.Linear(WIDTH, CLASSES)

    def frozen(self, *shape):
        return (torch.randn(*shape) * 0.02).to(self.kind)

    def layer(self, outputs):
        return self.frozen(outputs, WIDTH), torch.zeros(outputs, dtype=self.kind)

    @staticmethod
    def trained(*shape):
        return torch.nn.Parameter(torch.randn(*shape) * 0.02)

    def parameters(self):
        return [w for pair in self.adapters for w in pair] + list(self.head.parameters())

    def attention(self, x, block):
        cells, tokens, _ = x.shape
        packed = F.linear(x, *block["qkv"]).view(cells, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.options.attention_dropout)
        return F.linear(mixed.transpose(1, 2).reshape(cells, tokens, WIDTH), *block["out"])

    def forward(self, ids):
        x = F.layer_norm(F.embedding(ids, self.table), (WIDTH,))
        for i, block in enumerate(self.blocks):
            h = F.layer_norm(x + F.dropout(self.attention(x, block), DROPOUT), (WIDTH,))
            if i < len(self.adapters):
                down, up = (w.to(self.kind) for w in self.adapters[i])
                h = h + F.linear(F.gelu(F.linear(h, down)), up)
            inner = F.dropout(F.relu(F.linear(h, *block["up"])), DROPOUT)
            x = F.layer_norm(h + F.dropout(F.linear(inner, *block["down"]), DROPOUT), (WIDTH,))
        return self.head(x[:, 0].float())


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    stack = Stack(options)
    optimizer = torch.optim.Adam(stack.parameters())
    ids = torch.randint(0, VOCABULARY - 7, (options.batch, options.seq))
    labels = torch.randint(0, CLASSES, (options.batch,))
    wall, cpu = [], []
    for step in range(options.steps + 1):
        began, used = time.time(), time.process_time()
        loss = F.cross_entropy(stack.forward(ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step > 0:
            wall.append(time.time() - began)
            cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(statistics.median(wall), statistics.median(cpu), peak)


if __name__ == "__main__":
    main()
