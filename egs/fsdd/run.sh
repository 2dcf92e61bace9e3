#!/usr/bin/env bash
# Real speech: the Free Spoken Digit Dataset, ten digits and six speakers, in three folds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec ./run.sh --corpus fsdd "$@"
