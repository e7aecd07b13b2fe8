"""Evaluate OpenAI's GPT-2 (1558M: 48 layers, 25 heads, 1600 wide) on a dataset: OpenWebText by default."""

init_from = 'gpt2-xl'
eval_only = True
eval_iters = 500      # many batches, for a stable estimate
batch_size = 8
wandb_log = False
