"""
A GPT that learns to add: sums of numbers of up to three digits, digits of the sum in reverse order.

    python train.py config/arithmetic.py
    python sample.py --out_dir=out-arithmetic --start="123+456" --num_samples=1 --temperature=0
    python sample.py --out_dir=out-arithmetic --eval=data/arithmetic/test.tsv

On two cores of an AMD EPYC (Zen 4): 72 s, and of 1,000 sums that were not in the training data, 1,000 are right (one
run).
"""

out_dir = 'out-arithmetic'
eval_interval = 1000
eval_iters = 4
log_interval = 100

dataset = 'arithmetic'
data_order = 'shuffled'
batch_size = 128
block_size = 24
gradient_accumulation_steps = 1

n_layer = 2
n_head = 4
n_embd = 64
n_inner = 192

# Qwen3's block
pos = 'rotary'
norm = 'rmsnorm'
mlp = 'swiglu'
qk_norm = True
tie_weights = False

optimizer = 'muon'
learning_rate = 2e-2
weight_decay = 0.1
grad_clip = 0.0       # the size of a Muon step does not depend on the gradient norm

lr_schedule = 'linear'
cooldown = 0.7
max_iters = 5000
lr_decay_iters = max_iters
warmup_iters = 0
min_lr = 0
