"""Evaluate OpenAI's GPT-2 (350M: 24 layers, 16 heads, 1024 wide) on a dataset: OpenWebText by default."""

init_from = 'gpt2-medium'
eval_only = True
eval_iters = 500      # many batches, for a stable estimate
batch_size = 8
wandb_log = False
