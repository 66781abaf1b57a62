"""Task files of lm-evaluation-harness over files on disk: a group of two, whose right answers are known."""

from __future__ import annotations

import json
from pathlib import Path

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl, train: {name}.jsonl}}}}
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}} Answer:"
doc_to_choice: [" yes", " no"]
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
{more}
"""
GROUP = """\
group: both_of_mine
task: [colours_of_mine, sizes_of_mine]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 2.0}
"""


def write_tasks(folder: Path, *, more: str = "") -> Path:
    """Files of six and two questions, all of whose answers but one are ` yes`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("colours_of_mine", 6), ("sizes_of_mine", 2)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, more=more))
        rows = [{"question": f"the {name[:3]} {at} is?", "label": int(at == 1)} for at in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "both.yaml").write_text(GROUP)
    return folder
