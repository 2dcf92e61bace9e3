# shellcheck shell=bash
# Sourced from the recipe's directory: puts its Python environment on PATH, and makes it where it
# is missing or older than uv.lock.

make_environment() {
  local uv want quiet=--quiet
  want=$(cat uv.lock pyproject.toml | sha256sum | cut -d ' ' -f 1)
  if [ "$(cat .venv/.made_from 2> /dev/null)" = "$want" ]; then return 0; fi
  uv=$(command -v uv || true)
  if [ -z "$uv" ]; then
    if [ ! -x .uv/bin/uv ]; then
      local python
      python=$(command -v python3.11 || command -v python3 || true)
      if [ -z "$python" ]; then
        echo "path.sh: no Python; install Python 3.11 (apt-get install python3 python3-venv)" >&2
        return 1
      fi
      echo "path.sh: getting uv, which installs the rest"
      rm -rf .uv
      if ! "$python" -m venv .uv > .uv.log 2>&1; then
        rm -rf .uv
        echo "path.sh: $python -m venv failed (see .uv.log); apt-get install python3-venv, or install uv" >&2
        return 1
      fi
      if ! .uv/bin/python -m pip install --quiet uv==0.13.9 > .uv.log 2>&1; then
        rm -rf .uv
        echo "path.sh: cannot install uv (see .uv.log); is there a network?" >&2
        return 1
      fi
    fi
    uv=.uv/bin/uv
  fi
  echo "path.sh: making the environment .venv, 7 GB; a minute or three"
  if [ -t 2 ]; then quiet=; fi
  # Without bytecode, importing s3prl takes twice as long, in every stage.
  if ! UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} "$uv" sync --frozen --compile-bytecode $quiet; then
    echo "path.sh: the environment could not be made (it needs Python 3.11, the network and 7 GB); run the same command again to go on" >&2
    return 1
  fi
  echo "$want" > .venv/.made_from
}

# Not exit: people source this from their own shell.
make_environment || return 1
unset -f make_environment

PATH=$PWD/.venv/bin:$PATH
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PATH PYTHONPATH
export LC_ALL=C PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
