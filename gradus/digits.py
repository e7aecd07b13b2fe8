"""
MNIST for mlp_mnist.py: read the dataset, a saved network, a picture of a digit; distort images.

An image is 28 x 28 = 784 numbers from 0, the paper, to 1, the ink.
"""

import gzip
import io
import math
import os
import zlib

import numpy as np
import torch
from torch.nn import functional as F

from gradus import preparation
from gradus.errors import UserError, one_line
from gradus.files import require_file
from gradus.shapes import shapes_only
from model import MLP

FILES = {
    'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
    'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
MAX_BYTES = 2 ** 29                                   # of an unpacked file; the largest known has less than half of it


# ---------------------------------------------------------------------------- the dataset

def read_idx(path):
    """
    The uint8 array in a file of MNIST's idx format: two zero bytes, type 8, the number of dimensions, each size as
    four bytes (big-endian), then the values; gzipped or not. Raises UserError.
    """
    content = read_unzipped(path)
    if content[:4] not in (b'\0\0\x08\1', b'\0\0\x08\3') or len(content) < 4 + 4 * content[3]:
        raise UserError(f'{path}: begins with {content[:4].hex()}; expected 00000801 (labels) or 00000803 (images), '
                        'an idx file of bytes')

    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content, '>u4', dimensions, offset=4).tolist()
    found = len(content) - header
    expected = math.prod(shape)
    if found != expected or not found:
        raise UserError(f"{path}: {found:,} values; expected {' x '.join(map(str, shape))} = {expected:,}: "
                        'the file is truncated or too long')
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_unzipped(path):
    """The content of a file, gzipped or not. Raises UserError."""
    require_file(path)
    content = io.BytesIO()
    try:
        with open(path, 'rb') as f:
            zipped = f.read(2) == b'\x1f\x8b'
            f.seek(0)
            source = gzip.GzipFile(fileobj=f) if zipped else f
            while content.tell() <= MAX_BYTES and (piece := source.read(2 ** 20)):
                content.write(piece)
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f'{path}: cannot be read ({one_line(e)}); expected a file of MNIST') from e
    if content.tell() > MAX_BYTES:
        raise UserError(f'{path}: more than {MAX_BYTES:,} bytes, unpacked; expected a file of MNIST')
    return content.getvalue()


def read_digits(split):
    """The images (N, 784), float32 from 0 to 1, and digits (N,), int64, of 'train' or 'test'. Raises UserError."""
    folder = os.path.join('data', 'mnist')
    images_file, digits_file = FILES[split]
    preparation.prepare(folder, digits_file)
    images = read_idx(os.path.join(folder, images_file))
    digits = read_idx(os.path.join(folder, digits_file))
    if images.shape[1:] != (28, 28) or digits.shape != images.shape[:1] or digits.max() > 9:
        raise UserError(f'data/mnist: images {images.shape} and labels {digits.shape} of {split}: '
                        'expected (N, 28, 28) and (N,), labels 0 to 9')
    return torch.from_numpy(images).flatten(1).float().div_(255), torch.from_numpy(digits).long()


# ---------------------------------------------------------------------------- the network

def build(args, source, weights):
    """The MLP that `args` describe, with the weights of the checkpoint `source`. Raises UserError."""
    if 'n_layer' in args:
        raise UserError(f'{source}: a GPT; expected a digit network, which mlp_mnist.py trains')
    try:
        with shapes_only():                           # before there is memory for the sizes that a file claims
            MLP(**args).load_state_dict(weights, assign=True)
        model = MLP(**args)
        model.load_state_dict(weights)
    except (ValueError, TypeError, RuntimeError) as e:
        raise UserError(f'{source}: expected a digit network of mlp_mnist.py: {one_line(e, limit=200)}') from e
    if (args['sizes'][0], args['sizes'][-1]) != (784, 10):
        raise UserError(f"{source}: sizes={args['sizes']}; expected 784 pixels first and 10 digits last")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise UserError(f'{source}: a weight is not finite (NaN or infinity); train again with a lower --eta')
    return model


# ---------------------------------------------------------------------------- distortions

def distortion_basis():
    """
    The displacement fields that `distort` mixes, one a row, on the 28 x 28 pixels: (28, 784). Three rows for affine
    distortions: x and y, from -1 to 1, and the constant 1. 25 rows for elastic ones: a smooth bump around each point
    of a 5 x 5 grid.
    """
    at = (torch.arange(28) + 0.5) / 14 - 1
    x = at.expand(1, 28, 28)
    y = at[:, None].expand(1, 28, 28)
    points = torch.eye(25).view(25, 1, 5, 5)
    bumps = F.interpolate(points, size=(28, 28), mode='bicubic', align_corners=True)
    return torch.cat((x, y, torch.ones(1, 28, 28), bumps[:, 0])).flatten(1)


def distort(images, strength, basis):
    """
    The images (m, 784) as other hands might have written them: each randomly rotated, slanted, stretched, shifted
    (affine) and bent (elastic; Simard et al. 2003). One matrix product says where in the original each pixel of the
    new image comes from.
    """
    m = len(images)
    device = images.device

    def uniform(limit):
        return (torch.rand(m, device=device) * 2 - 1) * limit * strength        # (m,), from -limit to limit

    angle = uniform(0.3)
    slant = uniform(0.3)
    wide = uniform(0.18).exp()
    high = uniform(0.18).exp()
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack((wide * cos, high * (slant * cos - sin), uniform(0.12),
                          wide * sin, high * (slant * sin + cos), uniform(0.12)), dim=1).view(m, 2, 3)
    elastic = torch.randn(m, 2, 25, device=device) * 0.06 * strength

    origin = torch.cat((affine, elastic), dim=2) @ basis                        # (m, 2, 784): x and y for each pixel
    grid = origin.view(m, 2, 28, 28).permute(0, 2, 3, 1)                        # (m, 28, 28, 2)

    # Bilinear interpolation blurs the strokes, but PyTorch 2.10 has no bicubic one on MPS.
    mode = 'bilinear' if device.type == 'mps' else 'bicubic'
    pixels = F.grid_sample(images.view(m, 1, 28, 28), grid, mode, align_corners=False)      # (m, 1, 28, 28)
    return pixels.clamp_(0, 1).view(m, 784)           # bicubic interpolation overshoots at edges


# ---------------------------------------------------------------------------- a picture of a digit

def read_picture(path):
    """
    An image file as MNIST would hold it: (784,). The digit is cut out, scaled to fit a box of 20 x 20 pixels, and
    placed with its center of mass in the middle of 28 x 28. Raises UserError.
    """
    ink = _read_ink(path)

    # Cut the digit out and scale it.
    rows = ink.any(axis=1).nonzero()[0]
    columns = ink.any(axis=0).nonzero()[0]
    digit = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    scale = 20 / max(digit.shape)
    size = [max(1, round(n * scale)) for n in digit.shape]
    digit = F.interpolate(torch.from_numpy(digit)[None, None], size=size, mode='bilinear', antialias=True)[0, 0]
    digit = digit / digit.max()

    # Place its center of mass in the middle, as far as the digit stays inside.
    center = []
    for d in (0, 1):
        ink_along_d = digit.sum(dim=1 - d)                                      # (size[d],)
        center.append(float((ink_along_d * (torch.arange(size[d]) + 0.5)).sum() / digit.sum()))
    top, left = (math.ceil(min(max(14 - c, 0), 28 - n)) for c, n in zip(center, size))
    image = torch.zeros(28, 28)
    image[top:top + size[0], left:left + size[1]] = digit
    return image.flatten()


def _read_ink(path):
    """The image file as an array (height, width) from 0, the paper, to 1, the ink, dark on light or light on dark."""
    try:
        from PIL import Image, ImageOps
    except ImportError as e:
        raise UserError(f'{path}: an image file needs Pillow; pip install pillow, or use a test image, test:N') from e
    if os.path.exists(path) and not os.path.isdir(path):
        require_file(path)
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert('RGBA')              # upright, however the camera was held
            image.thumbnail((1000, 1000))
            alpha = np.asarray(image.getchannel('A'), dtype=np.float32)
            transparent = np.median(alpha) < 128                                # then whatever is opaque is ink
            gray = 255 - alpha if transparent else np.asarray(image.convert('L'), dtype=np.float32)
    except FileNotFoundError as e:
        raise UserError(f'{path}: not found; expected an image file, or test:N') from e
    except Exception as e:                            # Pillow raises a dozen types for damaged files
        raise UserError(f'{path}: cannot be read as an image ({type(e).__name__}); '
                        'expected a PNG, JPEG, ... of one digit') from e

    edge = np.concatenate((gray[0], gray[-1], gray[:, 0], gray[:, -1]))
    ink = np.abs(gray - np.median(edge))              # distance from the paper's color
    if ink.max() < 16:
        raise UserError(f'{path}: one color everywhere; expected a digit, dark on light or light on dark')
    ink = ink / ink.max()
    ink[ink < 0.2] = 0                                # the grain of the paper
    return ink


def print_digit(image):
    """Draw an image (784,) in the terminal, two rows of pixels a line."""
    inked = (image.view(28, 28) > 0.4).int().tolist()
    for upper, lower in zip(inked[::2], inked[1::2]):
        print(''.join(' ▄▀█'[2 * u + l] for u, l in zip(upper, lower)).rstrip())
