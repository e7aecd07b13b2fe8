"""
1. A neuron.

It weighs its inputs, adds its bias, and squashes the sum to a number between 0 and 1:

    z = w . a + b        a' = sigma(z) = 1 / (1 + e^-z)

Shapes: w (n,), a (n,), b (); the result is one number, ().

Hint: the dot product multiplies number by number, then adds up. The bias goes inside sigma, not after it.
Answer: model.py, `MLP.forward`, which does a whole layer at once.
"""



def neuron(w, b, a):
    """w: weights (n,); b: bias (); a: activations of the layer before (n,). Returns the neuron's activation ()."""
    raise NotImplementedError
