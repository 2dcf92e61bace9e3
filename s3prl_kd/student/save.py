"""The student dir: what other people's tools open, and what came of it apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from s3prl_kd.encoder import Encoder, parameters_of
from s3prl_kd.files import write_json

HEADS = "distillation_heads.safetensors"
RECORD = "distillation.json"


def save_student(
    directory: str | Path,
    student: Encoder,
    heads: torch.nn.Module | None,
    record: Mapping[str, Any],
) -> None:
    """Write a student into ``directory``, which exists.

    Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` as transformers
    does; the prediction heads apart in ``distillation_heads.safetensors``; how it was made in
    ``distillation.json``; and the model card ``README.md``.

    Args:
        directory: the student dir.
        student: the model.
        heads: None for a student that was not distilled.
        record: its ``name`` and how it was made: teacher, corpus, objective, steps ...
    """
    directory = Path(directory)
    if heads is not None:
        save_file(
            {name: value.contiguous() for name, value in heads.state_dict().items()},
            directory / HEADS,
        )
    record = dict(record) | {"parameters": parameters_of(student)}
    write_json(directory / RECORD, record)
    (directory / "README.md").write_text(_card(record["name"], record), encoding="utf-8")
    student.save_pretrained(directory)


def _card(name: str, record: Mapping[str, Any]) -> str:
    kind = "distilled from" if record["steps"] else "of the architecture (random weights) for"
    rows = "\n".join(f"| {key} | {value} |" for key, value in record.items())
    return f"""---
library_name: transformers
pipeline_tag: feature-extraction
tags: [speech, distillation, s3prl]
---
# {name}

A speech encoder {kind} `{record["teacher"]}`: 16 kHz waveform in, hidden states at 50 Hz out.

| | |
| --- | --- |
{rows}

```python
from transformers import AutoModel
model = AutoModel.from_pretrained("{name}")
```

or, as an s3prl upstream, independent of padding:

```python
import s3prl_kd
from s3prl.nn import S3PRLUpstream
s3prl_kd.register("path/of/{name}")
upstream = S3PRLUpstream("{name}")
```
"""
