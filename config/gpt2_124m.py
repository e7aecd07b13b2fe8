"""
GPT-2's size (124M) on OpenWebText, as fast as one machine can: bfloat16, compiled, fused, Muon. Half a million tokens a step.

    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py

10 billion tokens (20,000 steps). Neither time nor loss has been measured yet: LOG.md will say when they are. On the CPU it starts and steps, no more:

    python train.py config/gpt2_124m.py --dataset=shakespeare --batch_size=1 --gradient_accumulation_steps=1 --max_iters=3 --eval_iters=1
"""
out_dir = 'out-gpt2-124m'
dataset = 'openwebtext'
eval_interval = 500
eval_iters = 40
log_interval = 10
checkpoint_interval = 500
always_save_checkpoint = False

batch_size = 32
block_size = 1024
gradient_accumulation_steps = 16      # 32 x 1024 x 16 = 524,288 tokens a step
data_order = 'shuffled'

n_layer = 12
n_head = 12
n_embd = 768
# GPT-2's block, for its ecosystem; pos, norm, mlp, qk_norm, tie_weights = 'rotary', 'rmsnorm', 'swiglu', True, False is today's

optimizer = 'muon'
learning_rate = 0.01
weight_decay = 0.1
lr_schedule = 'linear'
max_iters = 20000
lr_decay_iters = max_iters
warmup_iters = 200
min_lr = 0
