"""
A first real pretraining: a model of GPT-2's size (124M) on 0.7 billion tokens of educational web pages, on one GPU.

    python data/fineweb_edu/prepare.py --shards=1
    python train.py config/fineweb_edu.py

Each part of the text is seen once: 1,400 steps of half a million tokens, with the recipe of config/gpt2_124m.py. The
usual 20 tokens for each parameter would be 2.5 billion, so do not expect GPT-2's quality. Neither time nor loss has
been measured yet. If GPU memory is short, halve batch_size and double gradient_accumulation_steps.
"""

out_dir = 'out-fineweb-edu'
eval_interval = 100
eval_iters = 20
log_interval = 10
checkpoint_interval = 200
always_save_checkpoint = False

dataset = 'fineweb_edu'
data_order = 'shuffled'

# 32 sequences x 1024 tokens x 16 micro-batches = 524,288 tokens a step
batch_size = 32
block_size = 1024
gradient_accumulation_steps = 16

# GPT-2's own block, which other tools can read.
n_layer = 12
n_head = 12
n_embd = 768

optimizer = 'muon'
learning_rate = 0.01
weight_decay = 0.1

lr_schedule = 'linear'
max_iters = 1400
lr_decay_iters = max_iters
warmup_iters = 50
min_lr = 0
