"""EleutherAI's evaluation harness runs a folder in Hugging Face's format; its numbers are those of our own model."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import export
from gradus import checkpoint, pretrained
from model import GPT, GPTConfig

# Answers of different lengths: acc and acc_norm then choose different ones.
ANSWERS = [' a', ' the long way home', ' some', ' 12', ' yes, of course']
QUESTIONS = [
    dict(question=f'Question {i}: what is {i * 37 % 101}?', choices=ANSWERS[:2 + i % 4], answer=i % 2)
    for i in range(16)
]

TASK = """
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with model/, a GPT-2 that reads bytes, and tasks/, the questions."""
    for name in ('lm_eval', 'accelerate', 'transformers'):
        if importlib.util.find_spec(name) is None:    # not imported: that takes seconds
            pytest.skip('the reference implementation: pip install lm_eval[hf]')
    monkeypatch.chdir(tmp_path)
    write_model('model')
    os.mkdir('tasks')
    with open('tasks/questions.yaml', 'w', encoding='utf-8') as f:
        f.write(TASK)
    with open('tasks/questions.jsonl', 'w', encoding='utf-8') as f:
        f.writelines(json.dumps(question) + '\n' for question in QUESTIONS)


def write_model(path):
    """Our export of a model with random weights that reads bytes."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=256))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2).add_(0.5 if p.dim() == 1 else 0.0)
    checkpoint.save('out/ckpt.pt', dict(model=model.state_dict(), model_args=checkpoint.model_args(model.config),
                                        tokenizer={'kind': 'byte'}))
    export.main(export.ExportConfig(to='hf', dest=path))


@torch.no_grad()
def log_likelihood(model, question, choice):
    """Of the answer's tokens after the question, with our model."""
    question, choice = (list(text.encode()) for text in (question, choice))
    idx = torch.tensor([question + choice])
    log_probs = model(idx, idx)[0].log_softmax(dim=-1)[0, len(question) - 1:-1]
    return log_probs.gather(1, torch.tensor(choice)[:, None]).sum().item()


@pytest.mark.slow
def test_its_command_gives_our_likelihoods(folder):
    env = dict(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', HF_HOME=os.path.abspath('cache'))
    command = 'lm_eval --model hf --model_args pretrained=model,prefix_token_id=10 --tasks questions '\
              '--include_path tasks --device cpu'
    ran = subprocess.run(
        [sys.executable, '-m', *command.split(), '--batch_size=4', '--log_samples', '--output_path=results'],
        env={**os.environ, **env}, capture_output=True, text=True, encoding='utf-8', timeout=200,
    )
    assert ran.returncode == 0, ran.stderr

    # its numbers
    results = {name.partition('_')[0]: os.path.join('results/model', name) for name in os.listdir('results/model')}
    with open(results['results'], encoding='utf-8') as f:
        scores = json.load(f)['results']['questions']
    with open(results['samples'], encoding='utf-8') as f:
        samples = {sample['doc_id']: sample for sample in map(json.loads, f)}

    # ours
    model = pretrained.build(pretrained.load('model')).eval()
    n_right = n_right_by_length = 0
    for i, question in enumerate(QUESTIONS):
        choices = question['choices']
        expected = [log_likelihood(model, question['question'], choice) for choice in choices]
        found = [float(answer[0][0]) for answer in samples[i]['resps']]
        assert found == pytest.approx(expected, abs=1e-3)

        by_length = [value / len(choice) for value, choice in zip(expected, choices)]
        n_right += expected.index(max(expected)) == question['answer']
        n_right_by_length += by_length.index(max(by_length)) == question['answer']
    assert scores['acc,none'] == pytest.approx(n_right / len(QUESTIONS))
    assert scores['acc_norm,none'] == pytest.approx(n_right_by_length / len(QUESTIONS))
    assert 0 < n_right < len(QUESTIONS)
    assert n_right != n_right_by_length
