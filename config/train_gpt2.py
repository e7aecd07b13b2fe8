"""
GPT-2 (124M) from scratch on OpenWebText, as nanoGPT does: val loss about 2.85 after 5 days on 8 A100s.

    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
"""

wandb_log = True
wandb_project = 'owt'
wandb_run_name = 'gpt2-124M'

eval_interval = 1000
eval_iters = 200
log_interval = 10

# 12 sequences x 1024 tokens x 40 micro-batches: about half a million tokens a step, 300 billion in total
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000

weight_decay = 1e-1
