"""
Character-level tiny Shakespeare for a GPU: nanoGPT's size (10.65M), with a modern block and Muon.

    python train.py config/shakespeare_char.py

The settings are those that helped small models on a CPU (LOG.md, and config/shakespeare_char_cpu_long.py). This run has
not been measured on a GPU yet.
"""

out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 0        # the whole val split: it is small
log_interval = 10

dataset = 'shakespeare_char'
data_order = 'shuffled'
batch_size = 64
block_size = 256
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

# Qwen3's block
pos = 'rotary'
norm = 'rmsnorm'
mlp = 'swiglu'
qk_norm = True
tie_weights = False

optimizer = 'muon'
learning_rate = 1e-2
weight_decay = 0.5
beta2 = 0.99

lr_schedule = 'linear'
cooldown = 0.7
max_iters = 2000
lr_decay_iters = max_iters
warmup_iters = 100
min_lr = 0
