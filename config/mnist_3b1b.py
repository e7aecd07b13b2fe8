"""
The network that 3Blue1Brown draws in "But what is a neural network?": two hidden layers of 16 neurons, 13,002 weights
and biases.

    python mlp_mnist.py config/mnist_3b1b.py

Test accuracy 93.9% (one seed) in 18 seconds on two cores of an AMD EPYC (Zen 4).
"""

out_dir = 'out-mnist-3b1b'

sizes = '784-16-16-10'
activation = 'sigmoid'
cost = 'quadratic'
distort = 0

backprop = 'manual'
optimizer = 'sgd'
epochs = 30
mini_batch_size = 10
eta = 3.0
cooldown = 0
