"""Our models among s3prl's upstreams, by name."""

import subprocess
import sys

import pytest
import torch
from tiny import SMALL
from transformers import HubertConfig

import s3prl_kd
from s3prl_kd.encoder import Encoder
from s3prl_kd.errors import UserError
from s3prl_kd.upstream import load_upstream

ARCHITECTURE = SMALL | {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def expdir(tmp_path_factory):
    torch.manual_seed(0)
    expdir = tmp_path_factory.mktemp("exp")
    for name in ("little_student", "other_student"):
        Encoder.from_config(HubertConfig(**ARCHITECTURE)).save_pretrained(expdir / name)
    (expdir / "results_synth").mkdir()
    return expdir


def test_name_is_found_and_listed(expdir):
    assert s3prl_kd.register(expdir) == ["little_student", "other_student"]
    from s3prl.nn import S3PRLUpstream

    assert {"little_student", "other_student", "fbank"} <= set(S3PRLUpstream.available_names())
    upstream = S3PRLUpstream("little_student")
    assert upstream.num_layers == 3
    assert set(upstream.hidden_sizes) == {32}


def test_import_alone_registers_exp(expdir):
    """In a process of its own, from a directory with an exp/, as a user of s3prl would."""
    (expdir.parent / "exp").symlink_to(expdir)
    code = (
        "import s3prl_kd, sys\n"
        "assert not {'s3prl.hub', 'torch'} & set(sys.modules)\n"
        "from s3prl.nn import S3PRLUpstream\n"
        "import torch\n"
        "assert 'other_student' in S3PRLUpstream.available_names()\n"
        "hs, lens = S3PRLUpstream('other_student')(torch.randn(1, 16000), torch.tensor([16000]))\n"
        "print(len(hs), tuple(hs[0].shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=expdir.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "3 (1, 50, 32)"


def test_any_directory(expdir):
    s3prl_kd.register(expdir)
    from s3prl.nn import S3PRLUpstream

    named = S3PRLUpstream("little_student").eval()
    given = S3PRLUpstream("s3prl_kd_local", path_or_url=str(expdir / "little_student")).eval()
    wav, length = torch.randn(1, 16000), torch.tensor([16000])
    with torch.no_grad():
        assert torch.equal(named(wav, length)[0][-1], given(wav, length)[0][-1])


def test_padding_changes_nothing_through_s3prl(expdir):
    upstream = load_upstream("little_student", expdir).eval()
    wavs = torch.randn(3, 40000)
    lengths = torch.tensor([16000, 40000, 100])
    with torch.no_grad():
        together, counts = upstream(wavs, lengths)
        for index, length in enumerate(lengths):
            alone, count = upstream(wavs[index : index + 1, :length], length[None])
            assert count[0][0] == counts[0][index]
            for a, b in zip(together, alone, strict=True):
                assert (a[index, : count[0][0]] - b[0]).abs().max() < 1e-4


def test_unknown_name_lists_the_known(expdir):
    with pytest.raises(UserError, match="unknown upstream 'no_such_upstream'") as error:
        load_upstream("no_such_upstream", expdir)
    ours, theirs = str(error.value).split("(of yours)")
    assert "little_student" in ours and "other_student" in ours
    assert "fbank" in theirs and "hubert_base" in theirs and "little_student" not in theirs


def test_a_name_of_s3prl_keeps_its_meaning(tmp_path):
    import s3prl.hub

    Encoder.from_config(HubertConfig(**ARCHITECTURE)).save_pretrained(tmp_path / "fbank")
    before = s3prl.hub.fbank
    with pytest.warns(UserWarning, match="rename"):
        s3prl_kd.register(tmp_path)
    assert s3prl.hub.fbank is before
