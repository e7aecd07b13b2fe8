"""
A model of GPT-2's size (124M) on OpenWebText, trained as fast as one machine can: bfloat16, compiled, fused, with Muon.

    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py

10 billion tokens: 20,000 steps of half a million. Neither time nor loss has been measured yet; LOG.md will say when
they are. On a CPU you can only check that it starts and steps:

    python train.py config/gpt2_124m.py --dataset=shakespeare --batch_size=1 --gradient_accumulation_steps=1 \
        --max_iters=3 --eval_iters=1
"""

out_dir = 'out-gpt2-124m'
eval_interval = 500
eval_iters = 40
log_interval = 10
checkpoint_interval = 500
always_save_checkpoint = False

dataset = 'openwebtext'
data_order = 'shuffled'

# 32 sequences x 1024 tokens x 16 micro-batches = 524,288 tokens a step
batch_size = 32
block_size = 1024
gradient_accumulation_steps = 16

# GPT-2's own block, which other tools can read. For Qwen3's block see config/quickstart.py.
n_layer = 12
n_head = 12
n_embd = 768

optimizer = 'muon'
learning_rate = 0.01
weight_decay = 0.1

lr_schedule = 'linear'
max_iters = 20000
lr_decay_iters = max_iters
warmup_iters = 200
min_lr = 0
