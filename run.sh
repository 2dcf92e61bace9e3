#!/usr/bin/env bash
# From speech to a distilled student, frozen and fine-tuned downstream systems and one table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# --- options ---
stage=  # stage to begin with, done even if it is done already; none: all that is not done
stop_stage=7  # last stage
corpus=synth  # name in conf/corpus
# shellcheck disable=SC2034 # read by name, as <corpus>_root
fsdd_root=  # directory of the Free Spoken Digit Dataset; none: fetched by stage 0
teacher=mini  # mini (pre-trained on the corpus), an s3prl upstream or a Hugging Face directory
teacher_config=mini  # how mini is pre-trained: name in conf/teacher or a file
student=two_layer  # name in conf/student or a file
distill_config=mini  # name in conf/distill or a file
downstream_config=mini  # name in conf/downstream or a file
tasks="kws sv kws+sv"  # task sets of stage 5; stage 4 does the single ones
upstream=  # run stages 4 to 7 on these upstreams only ("{tag}" stands for the corpus and fold)
lr_search=false  # choose the downstream learning rates on validation data
teacher_set=  # "key=value ..." over teacher_config
distill_set=  # "key=value ..." over distill_config
downstream_set=  # "key=value ..." over downstream_config
datadir=data  # where stage 1 writes
expdir=exp  # where stages 2 to 7 write
downloads=downloads  # where stage 0 writes
run_name=  # directory of the results under expdir; none: results_<corpus>
bootstrap=1000  # resamplings behind each interval
max_bad_share=0.1  # stop if more than this share of the audio is unusable
ngpu=0  # GPUs per node; 0: the CPU
num_nodes=1  # nodes; run the same command on each
nj=$(nproc)  # processes that prepare or read data
seed=1  # of everything
# --- end of options ---

known() { find "conf/$1" -name '*.yaml' -exec basename {} .yaml \; | LC_ALL=C sort | paste -sd ' '; }

help_header() {
  cat << 'HELP'
Usage: ./run.sh [--option value] ...

Stages:
  0  fetch the corpus, or check the one given           -> downloads/
  1  prepare Kaldi data dirs                            -> data/<corpus>/
  2  teacher: pre-train mini, or open another           -> exp/<teacher>/
  3  distil the student; make one from scratch          -> exp/<student>_<teacher>/
  4  downstream with the upstream frozen, each task     -> exp/<upstream>/downstream/
  5  downstream with it fine-tuned, alone and jointly   -> exp/<upstream>/downstream/
  6  score every system on the test sets                -> exp/results_<corpus>/results.json
  7  report: table and pictures                         -> exp/results_<corpus>/RESULTS.md

HELP
}

help_footer() {
  cat << HELP

Names:
  corpora:             $(known corpus)
  teachers:            mini, any s3prl upstream (hubert_base, wav2vec2, wavlm_base_plus ...),
                       a directory in Hugging Face's format
  students:            $(known student)
  teacher configs:     $(known teacher)
  distill configs:     $(known distill)
  downstream configs:  $(known downstream)
  upstreams:           fbank and all of s3prl's, every model under exp/

A stage that is done and whose inputs and configuration have not changed is skipped; one that was
killed goes on where it was.
HELP
}

command=./run.sh
if [ $# -gt 0 ]; then command+=$(printf ' %q' "$@"); fi
. utils/parse_options.sh

die() { echo "$0: $*" >&2; exit 1; }
if [ $# -gt 0 ]; then die "unexpected argument '$1'; options are --name value (see --help)"; fi
for name in stage stop_stage ngpu num_nodes nj seed bootstrap; do
  case "$name=${!name}" in
    stage=) ;;
    *= | *=*[!0-9]*) die "--$name: '${!name}' is not a number (see --help)" ;;
  esac
done
if [ "${stage:-0}" -gt "$stop_stage" ]; then die "--stage $stage comes after --stop_stage $stop_stage"; fi
for task in $tasks; do
  case "$task" in
    kws | sv | kws+sv | sv+kws) ;;
    *) die "unknown task '$task'; there are: kws sv kws+sv" ;;
  esac
done
for pair in "corpus=$corpus" "teacher=$teacher_config" "student=$student" \
  "distill=$distill_config" "downstream=$downstream_config"; do
  kind=${pair%%=*} name=${pair#*=}
  if [ ! -f "conf/$kind/$name.yaml" ] && { [ "$kind" = corpus ] || [ ! -f "$name" ]; }; then
    die "unknown $kind '$name'; there are: $(known "$kind")"
  fi
done

. ./path.sh

datadir=${datadir%/}
began=$SECONDS
begin() { # number, title
  if [ "${stage:-0}" -gt "$1" ] || [ "$stop_stage" -lt "$1" ]; then return 1; fi
  stage_began=$SECONDS force=()
  if [ "$stage" = "$1" ]; then force=(--force); fi
  echo "=== stage $1: $2"
}
end() { echo "=== took $((SECONDS - stage_began)) s; output in $1"; }
call() { # entry point, arguments
  local name=$1
  shift
  python -m "s3prl_kd.bin.$name" "$@"
}
datasets() { # a dataset dir a line: the corpus, or each of its folds
  if [ -f "$datadir/$corpus/corpus.json" ]; then
    echo "$datadir/$corpus"
  else
    find "$datadir/$corpus" -mindepth 2 -maxdepth 2 -name corpus.json -printf '%h\n' 2> /dev/null | LC_ALL=C sort
  fi
}
tag_of() { local tag=${1#"$datadir"/}; echo "${tag//\//_}"; }

root_option=${corpus}_root
read -ra teacher_overrides <<< "$teacher_set"
read -ra distill_overrides <<< "$distill_set"
read -ra downstream_overrides <<< "$downstream_set"
read -ra task_sets <<< "$tasks"
single_tasks=()
for task in "${task_sets[@]}"; do [[ $task == *+* ]] || single_tasks+=("$task"); done

if begin 0 "fetch $corpus"; then
  call fetch --corpus "$corpus" --root "${!root_option:-}" --downloads "$downloads"
  end "$downloads"
fi

if begin 1 "prepare the data of $corpus"; then
  root=${!root_option:-$(cat "$downloads/$corpus.root" 2> /dev/null || true)}
  call prepare_data --corpus "$corpus" --root "$root" --out "$datadir/$corpus" \
    --config "conf/corpus/$corpus.yaml" --nj "$nj" --seed "$seed" \
    --max_bad_share "$max_bad_share" "${force[@]}"
  end "$datadir/$corpus"
fi

dirs=()
if [ "$stop_stage" -ge 2 ]; then
  mapfile -t dirs < <(datasets)
  if [ ${#dirs[@]} -eq 0 ]; then die "$datadir/$corpus: no data yet; run stage 1 (--stage 1)"; fi
fi

student_suffix=
if [ "$teacher" = mini ]; then
  teacher_name='mini_{tag}'
else
  teacher_name=$(basename "$teacher")
  if [ -d "$teacher" ]; then
    teacher_name=$(basename "$(realpath "$teacher")")
    export S3PRL_KD_EXP=$expdir:$teacher${S3PRL_KD_EXP:+:$S3PRL_KD_EXP}
  fi
  # A directory of its own for every fold: a student has heard its fold's training speakers, who
  # are another's test speakers.
  if [ ${#dirs[@]} -gt 1 ]; then student_suffix='_{tag}'; fi
fi
student_name=$(basename "$student" .yaml)
scratch_student=${student_name}_scratch_$teacher_name$student_suffix
distilled_student=${student_name}_$teacher_name$student_suffix
if [ -n "$upstream" ]; then
  read -ra upstreams <<< "$upstream"
  rows=()
  for name in "${upstreams[@]}"; do rows+=("$name=$name"); done
  : "${run_name:=results_${corpus}_$(tr -cs 'A-Za-z0-9_\n' '_' <<< "$upstream")}"
else
  upstreams=(fbank "$teacher_name" "$scratch_student" "$distilled_student")
  rows=("fbank=${upstreams[0]}" "teacher=${upstreams[1]}" "scratch=${upstreams[2]}" "distilled=${upstreams[3]}")
fi
results=$expdir/${run_name:-results_$corpus}

if [ -z "$upstream" ] && begin 2 "teacher $teacher"; then
  for data in "${dirs[@]}"; do
    call teacher --teacher "$teacher" --data "$data" --expdir "$expdir" --nj "$nj" \
      --config "$teacher_config" --ngpu "$ngpu" --seed "$seed" \
      --set "${teacher_overrides[@]}" "${force[@]}"
  done
  end "$expdir"
fi

distil() { # name, options; of the loop below: data, tag, source
  call distill --teacher "$source" --data "$data" --student "$student" \
    --name "${1//"{tag}"/$tag}" --config "$distill_config" --expdir "$expdir" --seed "$seed" \
    --ngpu "$ngpu" --num_nodes "$num_nodes" --nj "$nj" "${@:2}" \
    --set "${distill_overrides[@]}" "${force[@]}"
}

if [ -z "$upstream" ] && begin 3 "distil $student_name"; then
  for data in "${dirs[@]}"; do
    tag=$(tag_of "$data")
    source=$teacher
    if [ "$teacher" = mini ]; then source=mini_$tag; fi
    distil "$distilled_student"
    distil "$scratch_student" --scratch
  done
  end "$expdir"
fi

downstream() { # mode, task sets
  local mode=$1 data tag
  shift
  for data in "${dirs[@]}"; do
    tag=$(tag_of "$data")
    call downstream --data "$data" --upstream "${upstreams[@]//"{tag}"/$tag}" --mode "$mode" \
      --tasks "$@" --config "$downstream_config" --expdir "$expdir" --seed "$seed" \
      --ngpu "$ngpu" --num_nodes "$num_nodes" --nj "$nj" --lr_search "$lr_search" \
      --set "${downstream_overrides[@]}" "${force[@]}"
  done
}

if [ ${#single_tasks[@]} -gt 0 ] && begin 4 "downstream, upstream frozen: ${single_tasks[*]}"; then
  downstream frozen "${single_tasks[@]}"
  end "$expdir/<upstream>/downstream"
fi

if begin 5 "downstream, upstream fine-tuned: ${task_sets[*]}"; then
  downstream finetuned "${task_sets[@]}"
  end "$expdir/<upstream>/downstream"
fi

if begin 6 "score on the test sets"; then
  row_options=()
  for row in "${rows[@]}"; do row_options+=(--row "$row"); done
  call score --data "${dirs[@]}" "${row_options[@]}" --expdir "$expdir" --out "$results" \
    --seed "$seed" --ngpu "$ngpu" --bootstrap "$bootstrap" --command "$command" "${force[@]}"
  end "$results/results.json"
fi

if begin 7 "report"; then
  call report --results "$results/results.json" --out "$results" "${force[@]}"
  end "$results/RESULTS.md"
fi

made=
if [ "$stop_stage" -ge 7 ]; then made="; the table is $results/RESULTS.md, the pictures lie beside it"; fi
echo "=== all done in $((SECONDS - began)) s$made"
