"""
How far one MLP gets: two wide hidden layers, batch norm, and images that are never the same twice.
"""
out_dir = 'out-mnist-best'

sizes = '784-1536-1536-10'
batch_norm = True
distort = 1.0

epochs = 200
mini_batch_size = 1000
eta = 6e-3
warmup_iters = 200
cooldown = 0.8
weight_decay = 0.05

dtype = 'bfloat16'
