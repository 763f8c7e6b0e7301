"""Lists an adapter directory as a reader of the HF PEFT layout sees it."""
import json
import pathlib
import sys

from safetensors import safe_open

adapter = pathlib.Path(sys.argv[1])
with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
    tensors = {key: list(file.get_tensor(key).shape) for key in file.keys()}
print(json.dumps({"config": json.loads((adapter / "adapter_config.json").read_text()), "tensors": tensors}))
