"""Pre-training of the embedded teacher: HuBERT (arXiv 2106.07447) on a corpus' own speech.

Per iteration: k-means units of every frame, then ESPnet's HuBERT task (masked prediction of the
units). The first iteration's units are those of MFCCs, the later ones' those of a middle layer of
the model before. Everything lies under ``<outdir>/pretrain/iteration<i>/``: ESPnet's inputs, its
log and its experiment directory; ``<outdir>`` itself becomes a transformers model.

Batches are cropped to their shortest utterance, never padded: torchaudio's GroupNorm averages over
padding.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import pickle
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml

from s3prl_kd.errors import UserError
from s3prl_kd.files import atomic_write
from s3prl_kd.teacher.config import MiniConfig
from s3prl_kd.teacher.kmeans import STRIDE, learn_units, mfcc, num_frames

if TYPE_CHECKING:
    from s3prl_kd.data.kaldi import DataDir

SAMPLE_RATE = 16000


def pretrain(
    train: DataDir,
    valid: DataDir,
    outdir: str | Path,
    config: MiniConfig,
    seed: int = 0,
    ngpu: int = 0,
    nj: int = 1,
    resume: bool = False,
) -> Path:
    """Pre-train a HuBERT and write it to ``outdir`` in transformers' format.

    Args:
        train: the speech to learn from; its texts are not read.
        valid: the speech of the validation loss.
        outdir: where the model, ``metrics.csv`` and ``pretrain/`` go.
        config: the model and its training.
        seed: of k-means, weights, batches and masks.
        ngpu: GPUs that ESPnet uses.
        nj: CPU threads.
        resume: go on from what a killed run left. Ends in the weights that run would have had.

    Raises:
        UserError: no utterance is long enough.
    """
    torch.set_num_threads(nj)
    outdir = Path(outdir)
    work = outdir / "pretrain"
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    begun = time.perf_counter()
    speech = _Speech(train, valid, work / "speech", config, seed)
    before: Path | None = None
    for iteration in range(config.iterations):
        directory = work / f"iteration{iteration}"
        _make_units(speech, directory, before, iteration, config, seed)
        _train_espnet(speech, directory, before, iteration, outdir, config, seed, ngpu)
        before = directory
    assert before is not None
    from s3prl_kd.teacher.convert_torchaudio import save_transformers, to_transformers

    save_transformers(to_transformers(load_state(before), config.encoder_conf()), outdir)
    # A copy of the corpus as ESPnet wants it: of no use any more.
    shutil.rmtree(work / "speech", ignore_errors=True)
    print(f"pre-trained in {time.perf_counter() - begun:.0f} s", flush=True)
    return outdir


def load_state(directory: Path) -> dict[str, torch.Tensor]:
    """The last weights of one iteration, named as in torchaudio's ``HuBERTPretrainModel``."""
    prefix = "encoder.hubert_pretrain_model."
    state = _load_checkpoint(directory / "espnet" / "checkpoint.pth")["model"]
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


class _Speech:
    """The two data dirs' usable utterances, as ark files that ESPnet reads.

    ESPnet opens neither pipes nor segments in a ``sound`` scp; an ark of samples it reads fast.
    """

    def __init__(
        self, train: DataDir, valid: DataDir, directory: Path, config: MiniConfig, seed: int
    ) -> None:
        self.directory = directory
        self.splits: dict[str, list[str]] = {}
        self._dirs = {"train": train, "valid": valid}
        self._split_of: dict[str, str] = {}
        shortest = max(config.min_seconds * SAMPLE_RATE, 400 + 4 * STRIDE)
        for split, data in self._dirs.items():
            utts = [utt for utt in data.utts if data.num_samples[utt] >= shortest]
            if split == "valid":
                utts = _some(utts, data.num_samples, config.max_valid_seconds, seed)
            if not utts:
                raise UserError(
                    f"{data.path}: no utterance of {shortest / SAMPLE_RATE:.2f} s or more to "
                    "pre-train on; lower min_seconds or give more speech"
                )
            self.splits[split] = utts
            # The same utterance may be in both, under one name.
            self._split_of.update(dict.fromkeys(utts, split))
        for split, data in self._dirs.items():
            self._write(split, data)

    def read(self, utt: str) -> np.ndarray:
        return self._dirs[self._split_of[utt]].read(utt)

    @property
    def utts(self) -> list[str]:
        return sorted(self._split_of)

    def _write(self, split: str, data: DataDir) -> None:
        import kaldiio

        scp = self.directory / split / "wav.scp"
        if scp.exists():
            return
        scp.parent.mkdir(parents=True, exist_ok=True)
        ark = scp.with_name("wav.ark").resolve()
        unfinished = scp.with_suffix(".partial")
        with kaldiio.WriteHelper(f"ark,scp:{ark},{unfinished}") as writer:
            for utt in self.splits[split]:
                writer(utt, data.read(utt).astype(np.float32))
        with atomic_write(scp.with_name("speech_shape")) as handle:
            handle.writelines(f"{utt} {data.num_samples[utt]}\n" for utt in self.splits[split])
        os.replace(unfinished, scp)


def _some(utts: list[str], samples: Mapping[str, int], seconds: float, seed: int) -> list[str]:
    """A random part of ``utts`` of about ``seconds``, in the given order."""
    chosen: set[str] = set()
    total = 0
    for index in np.random.RandomState(seed).permutation(len(utts)):
        if total >= seconds * SAMPLE_RATE:
            break
        chosen.add(utts[index])
        total += samples[utts[index]]
    return [utt for utt in utts if utt in chosen]


def _make_units(
    speech: _Speech,
    directory: Path,
    before: Path | None,
    iteration: int,
    config: MiniConfig,
    seed: int,
) -> None:
    if (directory / "units_valid").exists():
        return
    if before is None:
        what = "MFCC"

        def features(utt: str) -> np.ndarray:
            return mfcc(speech.read(utt))
    else:
        what = f"layer {config.unit_layer}"
        model = _torchaudio_model(before, config)

        @torch.inference_mode()
        def features(utt: str) -> np.ndarray:
            wav = torch.from_numpy(speech.read(utt))[None]
            states, _ = model.extract_features(wav, num_layers=config.unit_layer)
            return states[-1][0].numpy()

    with _progress(f"iteration {iteration}: units of {what}") as update:
        units = learn_units(
            speech.splits["train"],
            speech.utts,
            features,
            config.units,
            config.kmeans_frames,
            seed,
            update,
        )
    for split, utts in speech.splits.items():
        with atomic_write(directory / f"units_{split}") as handle:
            for utt in utts:
                assert len(units[utt]) == num_frames(len(speech.read(utt))), utt
                handle.write(f"{utt} {' '.join(map(str, units[utt]))}\n")


def _torchaudio_model(directory: Path, config: MiniConfig) -> torch.nn.Module:
    """The ``Wav2Vec2Model`` that an iteration trained, in eval mode."""
    from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder

    encoder = TorchAudioHuBERTPretrainEncoder(
        input_size=1, num_classes=config.units, **config.encoder_conf()
    )
    model = encoder.hubert_pretrain_model
    model.load_state_dict(load_state(directory))
    return model.wav2vec2.eval()


def _train_espnet(
    speech: _Speech,
    directory: Path,
    before: Path | None,
    iteration: int,
    outdir: Path,
    config: MiniConfig,
    seed: int,
    ngpu: int,
) -> None:
    espnet = directory / "espnet"
    espnet.mkdir(parents=True, exist_ok=True)
    if _mend_checkpoint(espnet) == config.steps // config.steps_per_epoch:
        _write_metrics(outdir, iteration, config)
        return
    with atomic_write(directory / "tokens") as handle:
        handle.writelines(f"{unit}\n" for unit in range(config.units))
    settings = _espnet_settings(speech, directory, before, config, seed, ngpu)
    with atomic_write(directory / "train.yaml") as handle:
        yaml.safe_dump(settings, handle, sort_keys=False)

    from s3prl_kd.teacher.espnet_task import make_task

    with (
        _progress(f"iteration {iteration}: masked prediction", keep_history=True) as update,
        _espnet_log(directory / "train.log"),
    ):

        def on_step(epoch: int, step: int) -> None:
            update((epoch - 1) * config.steps_per_epoch + step, config.steps)

        def on_epoch(complete: int) -> None:
            if complete:
                rows = _write_metrics(outdir, iteration, config)
                update.tell(_describe(rows.iloc[-1]))

        task = make_task(on_step, on_epoch, _bf16(config, ngpu), config.unmasked_weight)
        task.main(cmd=["--config", str(directory / "train.yaml")])
        update.tell(_describe(_write_metrics(outdir, iteration, config).iloc[-1]))


def _mend_checkpoint(espnet: Path) -> int:
    """How many epochs are done, after replacing a half-written checkpoint with the one before."""
    checkpoint, previous = espnet / "checkpoint.pth", espnet / "checkpoint.previous.pth"
    for attempt in (checkpoint, previous):
        try:
            done = _load_checkpoint(attempt)["reporter"]["epoch"]
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            continue
        if attempt != checkpoint:
            shutil.copyfile(attempt, checkpoint)
        return done
    checkpoint.unlink(missing_ok=True)
    return 0


def _espnet_settings(
    speech: _Speech,
    directory: Path,
    before: Path | None,
    config: MiniConfig,
    seed: int,
    ngpu: int,
) -> dict[str, Any]:
    def data(split: str) -> list[list[str]]:
        return [
            [str(speech.directory / split / "wav.scp"), "speech", "kaldi_ark"],
            [str(directory / f"units_{split}"), "text", "text_int"],
        ]

    # ESPnet's loss is a sum over masked frames; its gradient is clipped as a mean's would be.
    masked = config.batch_seconds * 50 * 0.5
    init = []
    if before is not None and config.warm_start:
        generator = "encoder.hubert_pretrain_model.logit_generator"
        last = before / "weights.pth"
        torch.save(_load_checkpoint(before / "espnet" / "checkpoint.pth")["model"], last)
        init = [f"{last}:::{generator}.label_embeddings"]
    return {
        "output_dir": str(directory / "espnet"),
        "encoder": "torchaudio_hubert",
        "encoder_conf": config.encoder_conf(),
        "model": "torchaudio",
        "input_size": 1,
        "normalize": None,
        "num_classes": config.units,
        "token_list": str(directory / "tokens"),
        "use_preprocessor": False,
        "collate_fn_conf": {"label_downsampling": 1, "pad": False, "rand_crop": True},
        "train_data_path_and_name_and_type": data("train"),
        "valid_data_path_and_name_and_type": data("valid"),
        "train_shape_file": [str(speech.directory / "train" / "speech_shape")],
        "valid_shape_file": [str(speech.directory / "valid" / "speech_shape")],
        "batch_type": "numel",
        "batch_bins": int(config.batch_seconds * SAMPLE_RATE),
        "num_iters_per_epoch": config.steps_per_epoch,
        "max_epoch": config.steps // config.steps_per_epoch,
        "num_workers": 0,
        "optim": "adamw",
        "optim_conf": {
            "lr": config.lr,
            "betas": [0.9, 0.98],
            "weight_decay": config.weight_decay,
        },
        "scheduler": "piecewiselinearwarmuplr",
        "scheduler_conf": {
            "warmup_steps_list": [
                0,
                max(1, round(config.steps * config.warmup_share)),
                config.steps + 1,
            ],
            "warmup_lr_list": [0.0, config.lr, 0.0],
        },
        "grad_clip": config.grad_clip * masked,
        "best_model_criterion": [["valid", "loss", "min"]],
        "keep_nbest_models": 1,
        "use_matplotlib": False,
        "use_tensorboard": True,
        "resume": True,
        "init_param": init,
        "ngpu": ngpu,
        "multiprocessing_distributed": ngpu > 1,
        "seed": seed,
        "log_interval": config.steps_per_epoch,
    }


def _bf16(config: MiniConfig, ngpu: int) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16-mixed"
    # Without instructions for it, bf16 is emulated, slower than fp32.
    return bool(ngpu) or torch.cpu._is_avx512_bf16_supported()


def _load_checkpoint(path: Path) -> dict[str, Any]:
    # Beside tensors ESPnet keeps durations and, from its schedulers, numpy's numbers.
    number = (np.float64(0).__reduce__()[0], np.dtype, type(np.dtype(np.float64)))
    with torch.serialization.safe_globals([datetime.timedelta, *number]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _write_metrics(outdir: Path, iteration: int, config: MiniConfig) -> pd.DataFrame:
    """Rewrite metrics.csv from the checkpoints up to ``iteration``."""
    rows = []
    for earlier in range(iteration + 1):
        path = outdir / "pretrain" / f"iteration{earlier}" / "espnet" / "checkpoint.pth"
        for epoch, stats in sorted(_load_checkpoint(path)["reporter"]["stats"].items()):
            row: dict[str, Any] = {
                "iteration": earlier,
                "epoch": epoch,
                "step": epoch * config.steps_per_epoch,
            }
            for phase in ("train", "valid"):
                one = stats[phase]
                row[f"{phase}_loss"] = one["loss"] / one["count_m"]
                row[f"{phase}_masked_accuracy"] = one["correct_m"] / one["count_m"]
                row[f"{phase}_unmasked_accuracy"] = one["correct_u"] / one["count_u"]
            row["seconds"] = stats["train"]["time"].total_seconds()
            rows.append(row)
    table = pd.DataFrame(rows)
    with atomic_write(outdir / "metrics.csv") as handle:
        table.to_csv(handle, index=False, float_format="%.6g")
    return table


def _describe(row: pd.Series) -> str:
    return (
        f"iteration {row['iteration']:.0f} step {row['step']:.0f}: "
        f"train loss {row['train_loss']:.3f}, valid loss {row['valid_loss']:.3f}, "
        f"accuracy masked {row['valid_masked_accuracy']:.1%}, "
        f"unmasked {row['valid_unmasked_accuracy']:.1%}"
    )


class _Update:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def tell(self, line: str) -> None:
        left = self._bar.tasks[0].time_remaining
        if left:
            line += f", {datetime.timedelta(seconds=round(left))} left"
        self._bar.console.print(line, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(title: str, keep_history: bool = False) -> Iterator[_Update]:
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn(), TimeElapsedColumn())
    # An hour: the default of 30 s forgets the pace while a validation runs.
    with Progress(
        *columns,
        console=Console(file=sys.stdout),
        speed_estimate_period=3600 if keep_history else 30,
    ) as bar:
        yield _Update(bar, bar.add_task(title, total=None))


@contextlib.contextmanager
def _espnet_log(path: Path) -> Iterator[None]:
    """Send what ESPnet logs, and its chatter on stderr, to a file."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with open(path, "a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(
            logging.Formatter("%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
        )
        root.handlers[:] = [handler]
        root.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
