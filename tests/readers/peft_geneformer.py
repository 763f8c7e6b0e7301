"""Loads a LoRA run on a Geneformer into Hugging Face transformers and PEFT and predicts with it.

The backbone is transformers' own `BertForSequenceClassification`. Prints the tensors that PEFT did not find
a place for, and the probabilities of each cell with the adapter, without it, and merged.
"""
import json
import os
import pathlib
import sys

from torch_of_the_build import load

os.environ["HF_HUB_OFFLINE"] = "1"
torch = load()
from peft import PeftModel, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification  # noqa: E402


def main():
    backbone, adapter, tokens = map(pathlib.Path, sys.argv[1:])
    sizes = json.loads((backbone / "config.json").read_text())
    record = json.loads((adapter / "adapter_config.json").read_text())["scpeft"]
    config = BertConfig(**sizes, num_labels=len(record["categories"]))
    model = BertForSequenceClassification(config).eval()
    missing, extra = model.load_state_dict(load_file(backbone / "model.safetensors"), strict=False)
    assert not missing and not extra, (missing, extra)

    adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    ours = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    batch = load_file(tokens)
    ids = batch["genes"].long()

    def probabilities(model):
        keep = (ids != sizes["pad_token_id"]).long()
        return model(input_ids=ids, attention_mask=keep).logits.softmax(-1).tolist()

    with torch.no_grad():
        found = {"adapted": probabilities(adapted)}
        with adapted.disable_adapter():
            found["plain"] = probabilities(adapted)
        found["merged"] = probabilities(adapted.merge_and_unload())
    print(json.dumps(found | {
        "cells": batch["cells"].tolist(),
        "missing": sorted(set(stored) - set(ours)),
        "extra": sorted(set(ours) - set(stored)),
        "different": sorted(k for k in ours if k in stored and not torch.equal(ours[k], stored[k])),
    }))


main()
