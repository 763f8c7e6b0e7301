"""One training step of a BERT of Geneformer's shape with Hugging Face transformers and peft.

LoRA of rank 8 on query and value, 18 classes, AdamW, fused attention: what a user of these libraries
runs. Prints the median wall and CPU seconds of a step, the peak memory in MiB, and cells per second over
all steps. Called by `cargo bench --bench backbones`; needs torch, transformers and peft.
"""

import argparse
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

# Vocabulary, width, layers, heads, feed-forward width.
SHAPES = {
    "v1-10m": (25426, 256, 6, 4, 512),
    "scpeft": (25426, 512, 12, 8, 1024),
    "v2-104m": (20275, 768, 12, 12, 3072),
}
CLASSES = 18


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="v1-10m")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lengths", help="one length per line: batches of cells in this order")
    return parser.parse_args()


def build(args):
    vocab, hidden, layers, heads, inner = SHAPES[args.shape]
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act="relu",
        max_position_embeddings=max(2048, args.seq),
        hidden_dropout_prob=0.02,
        # The fused kernel of the CPU has no dropout.
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = BertForSequenceClassification(config).to(dtype)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(model, lora).train()


def batch(args, lengths):
    width = max(lengths)
    ids = torch.randint(3, 20_000, (len(lengths), width))
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(0, CLASSES, (len(lengths),))
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(args)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    if args.lengths:
        with open(args.lengths) as lines:
            lengths = [min(args.seq, int(line)) for line in lines]
        starts = range(0, len(lengths) - args.batch + 1, args.batch)
        batches = [lengths[start : start + args.batch] for start in starts]
    else:
        batches = [[args.seq] * args.batch] * args.steps
    wall, cpu = [], []
    # The first step warms up.
    for number, lengths in enumerate([batches[0], *batches]):
        begun, used = time.time(), time.process_time()
        loss = model(**batch(args, lengths)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number > 0:
            wall.append(time.time() - begun)
            cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rate = args.batch * len(batches) / sum(wall)
    print(statistics.median(wall), statistics.median(cpu), peak, rate)


if __name__ == "__main__":
    main()
