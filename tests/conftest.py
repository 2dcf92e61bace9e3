"""What several tests share: real speech where it is at hand, and a tiny corpus."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Real speech beside the checkout; nothing needs it, and tests that use it skip without it.
SHARED = Path(os.environ.get("S3PRL_KD_SHARED", ROOT.parent / "shared")) / "data"


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs {name}: set S3PRL_KD_SHARED to the folder with data/{name}")
    return path


@pytest.fixture(scope="session")
def fsdd_root() -> Path:
    """The Free Spoken Digit Dataset."""
    return _shared("fsdd")


@pytest.fixture(scope="session")
def corrupt_audio() -> Path:
    """FLAC files that do not decode."""
    return _shared("corrupt_audio")


@pytest.fixture(scope="session")
def tiny_synth(tmp_path_factory) -> Path:
    """A dataset dir of the embedded corpus, some seconds long: 4 + 2 + 2 speakers."""
    from s3prl_kd.bin import prepare_data

    out = tmp_path_factory.mktemp("data") / "tiny"
    prepare_data.main(
        [
            *("--corpus", "synth", "--out", str(out), "--nj", "2"),
            *("--config", str(ROOT / "conf" / "corpus" / "synth.yaml"), "--set"),
            "speakers={train: 4, valid: 2, test: 2}",
            "sv={train: 3, valid: 3, test: 3}",
            "keywords=['yes', 'no', 'stop']",
            *("takes=2", "unknown=1", "valid_trials=6", "test_trials=6"),
        ]
    )
    return out
