"""Other people's clients: OpenAI's for Node, lm-eval's local-completions, LangChain's standard tests. npm brings the
first, the last wants a model with some wits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import paretobit as pb
from tests.cli.test_lm_eval import TASK
from tests.served import packed, running

NODE = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "any", maxRetries: 0});
const asked = {model: "tiny", messages: [{role: "user", content: "The river runs"}], max_tokens: 12, temperature: 0};
const whole = await client.chat.completions.create(asked);
let text = "", usage = null;
const options = {stream: true, stream_options: {include_usage: true}};
for await (const chunk of await client.chat.completions.create({...asked, ...options})) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const properties = {n: {type: "integer", minimum: 0, maximum: 9}};
const parameters = {type: "object", properties, required: ["n"], additionalProperties: false};
const tools = [{type: "function", function: {name: "count", parameters}}];
const forced = {tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 300};
const called = await client.chat.completions.create({...asked, ...forced});
const response = await client.responses.create(
  {model: "tiny", input: "The river runs", max_output_tokens: 12, temperature: 0});
let refused = null;
try {
  await client.chat.completions.create({...asked, store: true});
} catch (why) {
  refused = [why.status, why.param];
}
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, text, said: usage.completion_tokens, response: response.output_text, refused,
  called: JSON.parse(called.choices[0].message.tool_calls[0].function.arguments),
}));
"""
HARNESS = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
tasks = TaskManager(include_path=sys.argv[2], include_defaults=False)
how = f"base_url={sys.argv[1]}/v1/completions,model=tiny,tokenizer={sys.argv[3]},tokenizer_backend=huggingface"
found = lm_eval.simple_evaluate(
    model="local-completions", model_args=how, tasks=["tiny_choice"], task_manager=tasks, bootstrap_iters=0
)
print(json.dumps({k: v for k, v in found["results"]["tiny_choice"].items() if isinstance(v, float)}))
"""


@pytest.mark.cross
def test_the_client_for_node(tmp_path: Path) -> None:
    subprocess.run(["npm", "install", "--silent", "openai"], cwd=tmp_path, check=True, timeout=300)
    (tmp_path / "client.mjs").write_text(NODE)
    with running(packed(tmp_path, max_position_embeddings=2048)) as server:
        command = ["node", "client.mjs", server.url]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == found["text"] == found["response"] != "" and 0 < found["said"] <= 12
    assert {*found["called"]} == {"n"} and found["refused"] == [400, "store"]


@pytest.mark.slow
def test_lm_eval_through_the_server(tmp_path: Path) -> None:
    out = packed(tmp_path)
    endings = ["red", "a long blue river", "green", "old stones"]
    rows = [{"query": f"Item {i} is", "choices": endings, "gold": i % 4} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(TASK.format(path=tmp_path / "rows.jsonl"))
    ours = pb.evaluate(str(out), tasks=(str(tmp_path / "rows.jsonl"),), runtime="native").tasks[0].to_json()
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    with running(out) as server:
        command = [sys.executable, "-c", HARNESS, server.url, str(tmp_path / "tasks"), str(tmp_path / "tiny-model")]
        done = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.strip().splitlines()[-1])
    assert (theirs["acc,none"], theirs["acc_norm,none"]) == (ours["acc"], ours["acc_norm"])


@pytest.mark.slow
def test_langchain(tmp_path: Path) -> None:
    """All of its standard tests but those that docs/server.md lists."""
    pb.quantize("demo:smollm2", to="w8", method="rtn", out=str(tmp_path / "smollm2"))
    here = Path(__file__).parent / "langchain_standard.py"
    loops = ["asyncio_mode=auto", "asyncio_default_test_loop_scope=session"]
    options = [part for each in loops for part in ("-o", each)]
    with running(tmp_path / "smollm2", ctx=4096) as server:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            os.devnull,
            "--rootdir",
            str(tmp_path),
            *options,
            str(here),
        ]
        environment = os.environ | {"PARETOBIT_URL": server.url}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:]
