"""
How far one MLP gets: two wide hidden layers, batch norm, and images that are never the same twice.

    python mlp_mnist.py config/mnist_best.py

99.50%, 99.53%, 99.51% of the test images (three seeds), in 14 minutes on two cores of an AMD EPYC (Zen 4), which has bfloat16;
with --dtype=float32 it runs everywhere, but slower. LOG.md tells how the settings were chosen, without the test images.
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
