"""
Tiny Shakespeare by characters: nanoGPT's size (10.65M) with today's block and Muon. For a GPU.

    python train.py config/shakespeare_char.py

Chosen by what helped small models on the CPU (LOG.md, and config/shakespeare_char_cpu_long.py); not measured on a GPU yet.
"""
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'
eval_interval = 250
eval_iters = 0        # the whole of val: it is small
log_interval = 10

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
data_order = 'shuffled'

n_layer = 6
n_head = 6
n_embd = 384
pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False   # Qwen3's block
dropout = 0.2

optimizer = 'muon'
learning_rate = 1e-2
weight_decay = 0.5
lr_schedule = 'linear'
cooldown = 0.7
max_iters = 2000
lr_decay_iters = max_iters
min_lr = 0
warmup_iters = 100
beta2 = 0.99
