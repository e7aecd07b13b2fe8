"""
Nothing changed: nanoGPT's GPT for a CPU, on tiny Shakespeare by characters.

    python train.py config/what_if/base.py

Attention is softmax(Q K^T / sqrt(D) + mask) V, each token sees itself and those before it, and what attention and the
MLP find is added to the residual stream. Every other file in this folder changes one of these things.

The model as it is, to compare the others with.
"""

out_dir = 'out-what-if-base'
device = 'cpu'
eval_interval = 500
eval_iters = 40
log_interval = 10

dataset = 'shakespeare_char'
data_order = 'shuffled'
batch_size = 12
block_size = 64
gradient_accumulation_steps = 1

# GPT-2's block, small
n_layer = 4
n_head = 4
n_embd = 128

optimizer = 'adamw'
learning_rate = 1e-3
beta2 = 0.99
max_iters = 2000
lr_decay_iters = max_iters
warmup_iters = 100
min_lr = 1e-4
