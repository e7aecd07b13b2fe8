"""
Write a run's weights as safetensors, to give them away: a file of tensors and text, which cannot run code.

    python export.py --out_dir=out-quickstart          writes out-quickstart/model.safetensors (pip install safetensors)
"""

import os
from dataclasses import dataclass

from gradus import checkpoint, configurator, hf, pretrained


@dataclass
class ExportConfig:
    out_dir: str = 'out'              # folder of the run
    checkpoint: str = ''              # file in it; empty: best.pt if there is one, else ckpt.pt
    file: str = ''                    # where to write; empty: model.safetensors in out_dir


def main(cfg):
    found = pretrained.load_checkpoint(checkpoint.find(cfg.out_dir, cfg.checkpoint))
    file = cfg.file or os.path.join(cfg.out_dir, 'model.safetensors')
    hf.save_safetensors(file, found.weights, model_args=checkpoint.model_args(found.config), tokenizer=found.tokenizer,
                        iter_num=found.iter_num)
    print(f'{file}: {len(found.weights)} tensors of {found.source}; model_args and tokenizer are in its metadata')


if __name__ == '__main__':
    configurator.launch(main, ExportConfig)
