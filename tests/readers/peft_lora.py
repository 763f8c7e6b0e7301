"""Loads a LoRA run into Hugging Face PEFT and predicts with it.

The backbone is a plain torch module written from the published architecture, with the published names;
adapter, adapted biases and head come from PEFT alone. Prints what PEFT trained, the tensors that it
did not find a place for, and the probabilities of each cell with the adapter, without it, and merged.
"""
import json
import os
import pathlib
import sys
import warnings

from torch_of_the_build import load

os.environ["HF_HUB_OFFLINE"] = "1"
torch = load()
from peft import PeftModel, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, keep):
        cells, tokens, width = x.shape
        packed = self.Wqkv(x).view(cells, tokens, 3, self.heads, width // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return self.out_proj(mixed.transpose(1, 2).reshape(cells, tokens, width))


class Layer(nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, keep):
        h = self.norm1(x + self.self_attn(x, keep))
        return self.norm2(h + self.linear2(F.relu(self.linear1(h))))


class Genes(nn.Module):
    def __init__(self, tokens, width, pad):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=pad)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, ids):
        return self.enc_norm(self.embedding(ids))


class Values(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(1, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, values):
        x = values.clamp(max=512)[..., None]
        return self.norm(self.linear2(F.relu(self.linear1(x))))


class Stack(nn.Module):
    def __init__(self, args):
        super().__init__()
        sizes = args["embsize"], args["nheads"], args["d_hid"]
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(args["nlayers"]))

    def forward(self, x, keep):
        for layer in self.layers:
            x = layer(x, keep)
        return x


class Classifier(nn.Module):
    def __init__(self, width, layers, classes):
        super().__init__()
        hidden = []
        for _ in range(layers - 1):
            hidden += [nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)]
        self._decoder = nn.ModuleList(hidden)
        self.out_layer = nn.Linear(width, classes)

    def forward(self, x):
        for layer in self._decoder:
            x = layer(x)
        return self.out_layer(x)


class Scgpt(nn.Module):
    def __init__(self, args, vocab, classes):
        super().__init__()
        self.pad = vocab[args["pad_token"]]
        width = args["embsize"]
        self.encoder = Genes(max(vocab.values()) + 1, width, self.pad)
        self.value_encoder = Values(width)
        self.transformer_encoder = Stack(args)
        self.cls_decoder = Classifier(width, args["n_layers_cls"], classes)

    def forward(self, genes, values):
        x = self.encoder(genes) + self.value_encoder(values)
        x = self.transformer_encoder(x, genes != self.pad)
        return self.cls_decoder(x[:, 0]).softmax(-1)


def published(backbone):
    """The tensors of a backbone directory under the names of the module above."""
    tensors = load_file(backbone / "model.safetensors")
    return {name.replace("in_proj_", "Wqkv."): tensor for name, tensor in tensors.items()}


def main():
    backbone, adapter, tokens = map(pathlib.Path, sys.argv[1:])
    args = json.loads((backbone / "args.json").read_text())
    vocab = json.loads((backbone / "vocab.json").read_text())
    config = json.loads((adapter / "adapter_config.json").read_text())
    model = Scgpt(args, vocab, len(config["scpeft"]["categories"])).eval()
    missing, _ = model.load_state_dict(published(backbone), strict=False)
    left_out = [name for name in missing if not name.startswith("cls_decoder.")]
    assert not left_out, f"the backbone lacks {left_out}"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    ours = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    batch = load_file(tokens)
    inputs = batch["genes"].long(), batch["values"]
    with torch.no_grad():
        found = {"adapted": adapted(*inputs).tolist()}
        with adapted.disable_adapter():
            found["plain"] = adapted(*inputs).tolist()
        found["merged"] = adapted.merge_and_unload()(*inputs).tolist()
    print(json.dumps(found | {
        "cells": batch["cells"].tolist(),
        "missing": sorted(set(stored) - set(ours)),
        "extra": sorted(set(ours) - set(stored)),
        "different": sorted(k for k in ours if k in stored and not torch.equal(ours[k], stored[k])),
        "warnings": [str(w.message) for w in caught],
    }))


main()
