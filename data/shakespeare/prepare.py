"""
Tiny Shakespeare in GPT-2's tokens; cut where nanoGPT cuts it.

    python data/shakespeare/prepare.py                    download the text (1.1 MB)
    python data/shakespeare/prepare.py --input input.txt  use a copy of it, or any other text
"""

import subprocess
import sys
from pathlib import Path

AUTOMATIC = True       # small: train.py may run this file when the dataset is missing
HERE = Path(__file__).resolve().parent

same_text = HERE.parent / 'shakespeare_char' / 'prepare.py'
sys.exit(subprocess.run([sys.executable, str(same_text), '--tokenizer=gpt2', '--out', str(HERE), *sys.argv[1:]]).returncode)
