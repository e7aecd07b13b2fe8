"""
Write a run's weights as safetensors, to give them away: a file of tensors and text, which cannot run code.

    python export.py --out_dir=out-quickstart          writes out-quickstart/model.safetensors (pip install safetensors)
"""

import os
from dataclasses import dataclass

from gradus import checkpoint, configurator, hf


@dataclass
class ExportConfig:
    out_dir: str = 'out'              # folder of the run
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    file: str = ''                    # where to write; empty: model.safetensors in out_dir


ERRORS = (checkpoint.CheckpointError, hf.InteropError)


def main(cfg):
    path = checkpoint.find(cfg.out_dir, cfg.checkpoint)
    state = checkpoint.load(path)
    file = cfg.file or os.path.join(cfg.out_dir, 'model.safetensors')
    hf.save_safetensors(file, state['model'], model_args=state['model_args'], tokenizer=state.get('tokenizer'), iter_num=state.get('iter_num'))
    print(f"{file}: {len(state['model'])} tensors of {path}; model_args and tokenizer are in its metadata")


if __name__ == '__main__':
    configurator.run(main, ExportConfig, ERRORS)
