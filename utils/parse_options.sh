# shellcheck shell=bash
# Sourced by a script after it has set its options to their defaults: turns the script's
# arguments `--name value` and `--name=value` into values of those variables, as Kaldi's recipes
# do. `-` and `_` in a name are the same. An option is a variable set in the script's block
#
#   # --- options ---
#   name=default  # what it is
#   # --- end of options ---
#
# `--help` prints that block, after `help_header` and before `help_footer` where the script has
# functions of those names. What follows the options is left in "$@".

# The script may have changed into its own directory since it was called.
options_script=$0
if [ ! -f "$options_script" ]; then options_script=$OLDPWD/$0; fi

options_of() {
  # name<TAB>default<TAB>comment, a line each
  sed -n '/^# --- options ---$/,/^# --- end of options ---$/{
    s/^\([a-z][a-z0-9_]*\)=\(.*[^ ]\)\{0,1\}  *# *\(.*\)$/\1\t\2\t\3/p
  }' "$options_script"
}

print_help() {
  if declare -F help_header > /dev/null; then help_header; fi
  echo "Options (default):"
  local name default comment
  while IFS=$'\t' read -r name default comment; do
    default=${default#[\'\"]} default=${default%[\'\"]}
    printf '  --%-18s %s (%s)\n' "$name" "$comment" "${default:-none}"
  done < <(options_of | sed 's/\t\t/\t""\t/')
  if declare -F help_footer > /dev/null; then help_footer; fi
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) print_help; exit 0 ;;
    --*=*) option=${1%%=*} value=${1#*=}; shift ;;
    --*)
      option=$1
      if [ $# -lt 2 ]; then echo "$0: $option needs a value (see --help)" >&2; exit 1; fi
      value=$2
      shift 2
      ;;
    *) break ;;
  esac
  name=${option#--}
  name=${name//-/_}
  if ! options_of | cut -f 1 | grep -qxF -- "$name"; then
    echo "$0: unknown option $option; there are: $(options_of | cut -f 1 | sed 's/^/--/' | paste -sd ' ')" >&2
    exit 1
  fi
  case "${!name}" in
    true | false)
      case "$value" in
        true | false) ;;
        *) echo "$0: $option is true or false, not '$value'" >&2; exit 1 ;;
      esac
      ;;
  esac
  printf -v "$name" '%s' "$value"
done
