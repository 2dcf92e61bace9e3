#!/usr/bin/env bash
# The embedded default: synthesised speech, a small teacher, the whole way in minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec ./run.sh --corpus synth "$@"
