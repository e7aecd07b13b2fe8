"""Evaluate OpenAI's GPT-2 (124M: 12 layers, 12 heads, 768 wide) on a dataset: OpenWebText by default."""

init_from = 'gpt2'
eval_only = True
eval_iters = 500      # many batches, for a stable estimate
batch_size = 8
wandb_log = False
