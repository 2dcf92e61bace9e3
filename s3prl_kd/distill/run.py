"""One distillation from names to a student dir."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from s3prl_kd.data.dataset import SpeechDataset, collate
from s3prl_kd.data.sampler import BatchStream, ChunkedBatchSampler
from s3prl_kd.distill.module import DistillConfig, Distiller
from s3prl_kd.encoder import SAMPLE_RATE, Encoder, parameters_of
from s3prl_kd.files import atomic_dir
from s3prl_kd.student.build import StudentConfig, build_student, initialised_share, share_of
from s3prl_kd.student.save import save_student
from s3prl_kd.teacher.load import describe, load_teacher
from s3prl_kd.training import fit


def distil(
    directory: Path,
    teacher_name: str,
    shape: StudentConfig,
    config: DistillConfig,
    data: Path,
    expdir: Path,
    *,
    seed: int,
    resume: bool,
    record: Mapping[str, Any],
    ngpu: int = 0,
    num_nodes: int = 1,
    workers: int = 0,
) -> None:
    """Distil a student on ``data/unlabelled_train`` and leave a student dir.

    The student is the one of the last step, as in DistilHuBERT; ``metrics.csv`` holds the loss
    on ``data/unlabelled_valid`` along the way.

    Args:
        directory: the student dir; checkpoints and logs lie in it too.
        teacher_name: see :func:`s3prl_kd.teacher.load.load_teacher`.
        shape: the student's.
        config: the distillation's.
        data: dataset dir.
        expdir: where models are looked for by name.
        seed: of weights, batches and dropout.
        resume: go on from the last checkpoint, if there is one.
        record: further facts for the model card.
        ngpu, num_nodes: see :func:`s3prl_kd.training.fit`.
        workers: processes reading data.
    """
    L.seed_everything(seed, verbose=False)
    teacher = load_teacher(teacher_name, expdir)
    print(f"teacher {describe(teacher)}", flush=True)
    teacher_parameters = parameters_of(teacher)
    student = build_student(teacher, shape)
    share, taken = share_of(student, teacher), initialised_share(student, teacher, shape)
    print(
        f"student {directory.name}: {parameters_of(student) / 1e6:.2f} M parameters, "
        f"{share:.1%} of the teacher's; {taken:.0%} of them initialised from it",
        flush=True,
    )
    module = Distiller(student, teacher, config)
    train = SpeechDataset(data / "unlabelled_train", max_seconds=config.max_seconds, seed=seed)
    valid = SpeechDataset(data / "unlabelled_valid", max_seconds=config.max_seconds, seed=seed)
    batch_samples = round(config.batch_seconds * SAMPLE_RATE)
    trainer = config.trainer
    sampler = ChunkedBatchSampler(
        BatchStream(train.lengths, max_samples=batch_samples, seed=seed),
        trainer.steps_per_epoch * trainer.accumulate,
        dataset=train,
    )
    fit(
        module,
        DataLoader(train, batch_sampler=sampler, collate_fn=collate, num_workers=workers),
        DataLoader(
            valid,
            batch_sampler=valid_batches(valid.lengths, batch_samples),
            collate_fn=collate,
            num_workers=workers,
        ),
        directory,
        trainer,
        monitor="valid_loss",
        mode="min",
        seed=seed,
        resume=resume,
        ngpu=ngpu,
        num_nodes=num_nodes,
        label="distil",
    )
    if rank_zero_only.rank:
        return
    last = torch.load(
        directory / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True
    )
    module.load_state_dict(last["state_dict"])
    _publish(
        directory,
        module.student.cpu(),
        module.heads.cpu(),
        {
            **record,
            "teacher": teacher_name,
            "teacher_parameters": teacher_parameters,
            "share_of_teacher": round(share, 4),
            "initialised_from_teacher": round(taken, 4),
            "objective": "L1 + log-sigmoid cosine (arXiv 2110.01900)",
            "layers_predicted": config.layers,
            "steps": trainer.max_steps,
            "batch_seconds": config.batch_seconds,
            "corpus": str(data),
        },
    )


def scratch(
    directory: Path,
    teacher_name: str,
    shape: StudentConfig,
    expdir: Path,
    seed: int,
    record: Mapping[str, Any],
) -> None:
    """Leave a student dir of the same architecture with random weights, the control."""
    L.seed_everything(seed, verbose=False)
    teacher = load_teacher(teacher_name, expdir)
    student = build_student(teacher, shape, scratch=True)
    facts = {
        **record,
        "teacher": teacher_name,
        "teacher_parameters": parameters_of(teacher),
        "share_of_teacher": round(share_of(student, teacher), 4),
        "steps": 0,
    }
    _publish(directory, student, None, facts)


def _publish(directory: Path, student: Encoder, heads, record: Mapping[str, Any]) -> None:
    with atomic_dir(directory / "model") as partial:
        save_student(partial, student, heads, record | {"name": directory.name})
    # config.json is what makes it a model; it comes last.
    files = sorted((directory / "model").iterdir(), key=lambda file: file.name == "config.json")
    for file in files:
        os.replace(file, directory / file.name)
    (directory / "model").rmdir()


def valid_batches(lengths: list[int], max_samples: int) -> list[list[int]]:
    """Indices in batches of at most ``max_samples`` padded samples, longest first."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_samples
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
