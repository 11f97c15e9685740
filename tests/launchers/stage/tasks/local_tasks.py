"""Tasks of the harness with local data: with choices, with one answer, a text scored as a whole, and generated text."""

import json
from pathlib import Path
from typing import Any

import yaml

CHOICES: dict[str, Any] = {
    "task": "rivers",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rivers.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "doc_to_text": "the {{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metadata": {"version": 1.0},
}
ANSWER: dict[str, Any] = {
    **{name: value for name, value in CHOICES.items() if name != "doc_to_choice"},
    "task": "banks",
    "output_type": "loglikelihood",
    "doc_to_target": "{{' ' + choices[answer]}}",
    "target_delimiter": "",
}
TEXT: dict[str, Any] = {
    "task": "rain",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rain.jsonl"}},
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metadata": {"version": 1.0},
}
WORDS: dict[str, Any] = {
    "task": "words",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rain.jsonl"}},
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "doc_to_target": "a word that no model says",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {"name": "low", "filter": [{"function": "lowercase"}, {"function": "take_first"}]},
    ],
}
QUESTIONS = [
    {"question": "river and its", "choices": ["bank", "benzene oxide"], "answer": 0},
    {"question": "old rain where", "choices": ["C D E", "time will pass"], "answer": 1},
    {"question": "model of a", "choices": ["acid", "river"], "answer": 0},
    {"question": "bank under old", "choices": ["rain", "stone and stone", "z2"], "answer": 0},
]
TEXTS = ["the river and its bank", "old rain where time will pass over every stone", "methyl ethyl propan"]


def write_tasks(folder: Path) -> Path:
    """Write the tasks with their data below a folder; returns the folder of their YAML files."""
    place = folder / "tasks"
    place.mkdir(parents=True, exist_ok=True)
    for task in (CHOICES, ANSWER, TEXT, WORDS):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    (place / "rivers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (place / "rain.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    return place
