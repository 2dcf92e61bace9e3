"""Scores of a trained system on test data, in Kaldi-style files."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from s3prl_kd.config import build
from s3prl_kd.downstream.config import DownstreamConfig
from s3prl_kd.downstream.data import eval_loader, open_task
from s3prl_kd.downstream.module import DownstreamModule
from s3prl_kd.downstream.tasks import build_tasks, cosine_scores
from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write, read_json
from s3prl_kd.upstream import load_upstream


def load_system(system_dir: str | Path, expdir: str | Path = "exp") -> DownstreamModule:
    """A trained system in eval mode, on the CPU.

    Args:
        system_dir: what :func:`s3prl_kd.downstream.train.train_system` wrote.
        expdir: where its upstream is found, if it is one of ours.

    Raises:
        UserError: the system is not trained, or its checkpoint does not fit its upstream.
    """
    system_dir = Path(system_dir)
    checkpoint = system_dir / "checkpoints" / "best.ckpt"
    try:
        about = read_json(system_dir / "system.json")
        content = yaml.safe_load((system_dir / "config.yaml").read_text(encoding="utf-8"))
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, so this system is not trained; run stage 4 or 5"
        ) from None
    config = build(DownstreamConfig, content, str(system_dir / "config.yaml"))
    upstream = load_upstream(about["upstream"], expdir)
    tasks = build_tasks(upstream, about["tasks"], about["labels"], config, about["seed"])
    module = DownstreamModule(upstream, tasks, about["mode"], config)
    try:
        missing, unexpected = module.load_state_dict(state, strict=module.strict_loading)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{checkpoint}: of another upstream ({first}); train again") from None
    if unexpected or any(not name.startswith("upstream.") for name in missing):
        raise UserError(f"{checkpoint}: does not belong to this configuration; train again")
    return module.eval()


def write_scores(
    system_dir: str | Path, data: str | Path, expdir: str | Path = "exp", ngpu: int = 0
) -> list[Path]:
    """Score a system on its tasks' test sets; each utterance goes through the model once.

    ``kws_scores`` has the header ``# utt label predicted CLASS...`` and per utterance its id, the
    true and the predicted label and each class' log-probability. ``sv_scores`` has per trial
    ``enrol test score``, the score being a cosine.

    Args:
        system_dir: the trained system; the files are written into it.
        data: the dataset dir with ``kws_test`` and ``sv_test``.
        expdir: see :func:`load_system`.
        ngpu: 1 or more to run on a GPU.

    Returns:
        The files written.
    """
    system_dir = Path(system_dir)
    module = load_system(system_dir, expdir).to("cuda" if ngpu > 0 else "cpu")
    written = []
    for name, task in module.tasks.items():
        labels = task.classes if name == "kws" else task.speakers
        dataset = open_task(Path(data), "test", task, labels, module.config, seed=0)
        outputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for batch in eval_loader(dataset):
                batch["wavs"] = batch["wavs"].to(module.device)
                batch["lengths"] = batch["lengths"].to(module.device)
                output = module(name, batch).float().cpu()
                outputs.update(zip(batch["utts"], output, strict=True))
        path = system_dir / f"{name}_scores"
        with atomic_write(path) as handle:
            if name == "kws":
                print("# utt label predicted", *labels, file=handle)
                for utt in dataset.utts:
                    scores = outputs[utt].log_softmax(dim=-1)
                    predicted = labels[int(scores.argmax())]
                    numbers = (f"{score:.6f}" for score in scores.tolist())
                    print(utt, dataset.data.text[utt], predicted, *numbers, file=handle)
            else:
                utts = dataset.utts
                stacked = torch.stack([outputs[utt] for utt in utts])
                trials = dataset.data.trials
                for trial, score in zip(trials, cosine_scores(stacked, utts, trials), strict=True):
                    print(trial.enrol, trial.test, f"{score:.6f}", file=handle)
        written.append(path)
    return written
