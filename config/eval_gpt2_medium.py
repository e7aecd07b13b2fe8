"""How well OpenAI's GPT-2 (350M: 24 layers, 16 heads, 1024 wide) predicts a dataset, OpenWebText unless told otherwise."""
batch_size = 8
eval_iters = 500   # many batches: a steady figure
eval_only = True
wandb_log = False
init_from = 'gpt2-medium'
