"""
A small GPT (10.65M) on tiny Shakespeare, character by character, as nanoGPT does: val loss about 1.47 in 3 minutes on
an A100. Without a GPU, use config/quickstart.py or the recipes in docs/shakespeare.md.
"""

out_dir = 'out-shakespeare-char'
eval_interval = 250   # often: with so little text it overfits, and best.pt should catch the turning point
eval_iters = 200
log_interval = 10
always_save_checkpoint = False

wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # small networks tolerate a higher one
beta2 = 0.99          # few tokens a step: average over more steps
max_iters = 5000
lr_decay_iters = 5000
warmup_iters = 100
min_lr = 1e-4
