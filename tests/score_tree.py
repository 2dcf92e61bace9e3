"""A fabricated corpus of two folds and trained systems on it, whose scores are drawn."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from s3prl_kd.data.kaldi import Trial, write_data_dir

CLASSES = ["no", "yes", "_unknown_"]
SPEAKERS = ["anna", "bert", "carl", "dora"]
KINDS = ("frozen/kws", "frozen/sv", "finetuned/kws", "finetuned/sv", "finetuned/kws+sv")
# How well each upstream does, from 0 (guessing) to 1.
SKILL = {"fbank": 0.3, "mini": 0.95, "scratch": 0.5, "student": 0.85}


@dataclass
class Tree:
    expdir: Path
    data: list[Path]
    rows: list[str]
    utts: dict[str, str]
    calls: list[Path] = field(default_factory=list)

    def system(self, upstream: str, kind: str) -> Path:
        return self.expdir / upstream / "downstream" / upstream[-4:] / kind

    def write_scores(self, system_dir, data, expdir, ngpu=0):
        """Stands for a forward pass: scores that are as good as the upstream's skill."""
        system_dir, data = Path(system_dir), Path(data)
        self.calls.append(system_dir)
        about = json.loads((system_dir / "system.json").read_text())
        skill = SKILL[about["upstream"].split("_")[0]]
        generator = np.random.default_rng(zlib.crc32(str(system_dir.relative_to(expdir)).encode()))
        written = []
        if "kws" in about["tasks"]:
            lines = ["# utt label predicted " + " ".join(CLASSES)]
            for utt, label in self.utts.items():
                scores = generator.standard_normal(len(CLASSES))
                scores[CLASSES.index(label)] += 4 * skill
                predicted = CLASSES[int(scores.argmax())]
                lines.append(" ".join([utt, label, predicted, *(f"{s:.4f}" for s in scores)]))
            (system_dir / "kws_scores").write_text("\n".join(lines) + "\n")
            written.append(system_dir / "kws_scores")
        if "sv" in about["tasks"]:
            lines = []
            for line in (data / "sv_test" / "trials").read_text().splitlines():
                enrol, test, kind = line.split()
                value = generator.standard_normal() + 4 * skill * (kind == "target")
                lines.append(f"{enrol} {test} {value:.4f}")
            (system_dir / "sv_scores").write_text("\n".join(lines) + "\n")
            written.append(system_dir / "sv_scores")
        return written


def write_split(directory: Path, utts: dict[str, str], trials: list[Trial] | None = None) -> None:
    write_data_dir(
        directory,
        {utt: f"{utt}.wav" for utt in utts},
        {utt: utt.split("-")[0] for utt in utts},
        utts,
        dict.fromkeys(utts, 16000),
        trials,
    )


def make_tree(root: Path) -> Tree:
    """Two folds, four upstreams, every system of theirs; no score yet."""
    utts = {f"{s}-{n:02d}": CLASSES[n % len(CLASSES)] for s in SPEAKERS for n in range(12)}
    speech = {utt: "speech" for utt in utts if int(utt.split("-")[1]) < 4}
    names = sorted(speech)
    trials = [
        Trial(a, b, a.split("-")[0] == b.split("-")[0])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    expdir, data = root / "exp", [root / "data" / "toy" / f"fold{n}" for n in (1, 2)]
    for number, fold in enumerate(data, 1):
        write_split(fold / "kws_test", utts)
        write_split(fold / "sv_test", speech, trials)
        corpus = {"name": "toy", "tag": f"toy{number}", "classes": CLASSES, "train_speakers": 4}
        (fold / "corpus.json").write_text(json.dumps(corpus))
    rows = ["fbank=fbank_{tag}", "teacher=mini_{tag}", "scratch=scratch_mini_{tag}"]
    tree = Tree(expdir, data, [*rows, "distilled=student_mini_{tag}"], utts)
    for number in (1, 2):
        for prefix, count, layers in (
            ("fbank", 0, 1),
            ("mini", 4_000_000, 13),
            ("scratch_mini", 1_000_000, 3),
            ("student_mini", 1_000_000, 3),
        ):
            upstream = f"{prefix}_toy{number}"
            for kind in KINDS if count else KINDS[:2]:
                write_system(tree.system(upstream, kind), upstream, kind, count, layers)
            if prefix in ("mini", "student_mini"):
                (expdir / upstream / "metrics.csv").write_text(
                    "step,seconds,lr,train_loss,valid_loss\n10,1.0,0.1,2.0,2.1\n20,2.0,0.0,1.5,1.7\n"
                )
    return tree


def write_system(directory: Path, upstream: str, kind: str, count: int, layers: int) -> None:
    mode, tasks = kind.split("/")
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / "best.ckpt").write_text(kind)
    about = {
        "upstream": upstream,
        "tag": upstream[-4:],
        "mode": mode,
        "tasks": tasks.split("+"),
        "upstream_params": count,
        "head_params": {task: {"kws": 100, "sv": 200}[task] for task in tasks.split("+")},
        "seconds": 60.0,
    }
    (directory / "system.json").write_text(json.dumps(about))
    weights = {1: [1.0], 3: [0.2, 0.3, 0.5], 13: [1 / 13] * 13}[layers]
    (directory / "layer_weights.json").write_text(
        json.dumps(dict.fromkeys(about["tasks"], weights))
    )
    names = {"kws": "valid_kws_accuracy", "sv": "valid_sv_eer"}
    header = ",".join(names[task] for task in about["tasks"])
    rows = [
        f"{step},{step / 10},0.1,1.0," + ",".join(f"{step / 40:.2f}" for _ in about["tasks"])
        for step in (10, 20, 30)
    ]
    (directory / "metrics.csv").write_text(
        f"step,seconds,lr,train_loss,{header}\n" + "\n".join(rows) + "\n"
    )
