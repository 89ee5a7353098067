"""Quality of a model, measured through one callable `logits(tokens, first)`; numpy at the heaviest.

The torch decoder, the native runtime and a stranger's model are measured by the same code. docs/evaluation.md
has the protocol and the formulas.
"""

from paretobit.evals.divergence import Comparison, compare, paired
from paretobit.evals.perplexity import Logits
from paretobit.evals.tasks import Task, TaskResult, evaluate_task, read_task
from paretobit.evals.text import encode_windows, read_text, windows

__all__ = [
    "Comparison",
    "Logits",
    "Task",
    "TaskResult",
    "compare",
    "encode_windows",
    "evaluate_task",
    "paired",
    "read_task",
    "read_text",
    "windows",
]
