"""s3prl-kd: distilled speech upstreams, fine-tuned jointly for several tasks.

Importing the package makes every student under ``exp/`` an s3prl upstream by name; see
:mod:`s3prl_kd.upstream`.
"""

from s3prl_kd.upstream import install as _install
from s3prl_kd.upstream import register

__all__ = ["register"]

_install()
