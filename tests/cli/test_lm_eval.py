"""EleutherAI's harness on a packed model, offline, on a task file of our own. Needs the extra `lm-eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import tiny_llama_folder

import paretobit as pb

CODE = """
import json, sys
import lm_eval, paretobit.evals.lm_eval_adapter
from lm_eval.tasks import TaskManager
tasks = TaskManager(include_path=sys.argv[2], include_defaults=False)
packed = f"artifact={sys.argv[1]}"
found = lm_eval.simple_evaluate(
    model="paretobit", model_args=packed, tasks=["tiny_choice"], task_manager=tasks, bootstrap_iters=0
)
print(json.dumps({k: v for k, v in found["results"]["tiny_choice"].items() if isinstance(v, float)}))
"""
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.mark.slow
def test_the_harness_agrees_with_eval(tmp_path: Path) -> None:
    model = tiny_llama_folder(tmp_path / "model")
    pb.quantize(str(model), to="w4g16", method="rtn", out=str(tmp_path / "packed"))
    endings = ["red", "a long blue river", "green", "old stones"]
    rows = [{"query": f"Item {i} is", "choices": endings, "gold": i % 4} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(TASK.format(path=tmp_path / "rows.jsonl"))
    ours = pb.evaluate(str(tmp_path / "packed"), tasks=(str(tmp_path / "rows.jsonl"),)).tasks[0].to_json()
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", CODE, str(tmp_path / "packed"), str(tmp_path / "tasks")]
    done = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.strip().splitlines()[-1])
    assert theirs["acc,none"] == ours["acc"]
    assert theirs["acc_norm,none"] == ours["acc_norm"]
