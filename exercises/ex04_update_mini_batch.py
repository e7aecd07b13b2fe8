"""
4. update_mini_batch: one step of gradient descent.

Move every weight and bias a little against its mean gradient over the m images of the mini-batch:

    w^l -> w^l - eta/m sum dC/dw^l        b^l -> b^l - eta/m sum dC/db^l

`backprop` is given, so this works before you have solved exercise 3. It returns sums over the images.

Shapes: x (n_1, m), y (n_L, m), one image in each column; w^l and nabla_w^l (n_l, n_{l-1}); b^l and nabla_b^l (n_l, 1).

Hint: change the tensors themselves, with w -= ... or w.sub_(...). A plain w = w - ... makes a new tensor and forgets it.
Answer: mlp_mnist.py, `update_mini_batch`.
"""



def update_mini_batch(weights, biases, x, y, eta, backprop):
    """
    weights: list of w^l (n_l, n_{l-1}) and biases: list of b^l (n_l, 1), changed in place; x (n_1, m); y (n_L, m);
    eta: learning rate, a float; backprop(weights, biases, x, y) returns the lists nabla_w, nabla_b. Returns nothing.
    """
    raise NotImplementedError
