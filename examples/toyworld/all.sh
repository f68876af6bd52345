#!/usr/bin/env bash
# The embedded model from nothing, stage by stage: see README.md beside this. A finished stage is not repeated, a broken-off one goes on.
#
#     examples/toyworld/all.sh [FOLDER]            # everything into FOLDER (default: runs): hours on two cores
#     QUICK=1 examples/toyworld/all.sh FOLDER      # minutes, to see that it works; the model it makes shows nothing
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs} ranks=${RANKS:-2}
export OMP_NUM_THREADS=1        # several processes of one thread beat one process of several
if [ "${QUICK:-}" ]; then
    vae=4 videos=8 teacher=4 pairs=4 ode=4 updates=2
else
    vae=9000 videos=1536 teacher=14000 pairs=512 ode=3000 updates=100
fi

step() { printf '%s/step-%06d' "$1" "$2"; }
stage() {                       # stage NAME FILE COMMAND...: runs the command unless the file is there, and tells its minutes
    local name=$1 file=$2 began=$SECONDS
    shift 2
    if [ ! -e "$file" ]; then
        "$@"
        echo "$name took $(((SECONDS - began + 59) / 60)) min" | tee -a "$runs/minutes.txt"
    fi
}
gate() { [ "${QUICK:-}" ] || python examples/toyworld/gates.py "$@"; }
sfpp_run() {                    # sfpp_run COMMAND RECIPE FOLDER STEPS KEY=VALUE...
    local words=("$1" "$2" --out "$3" --set "training.steps=$4" --set "training.save_every=$((($4 + 9) / 10))")
    compgen -G "$3/step-*" >/dev/null && words+=(--resume)
    [ "${QUICK:-}" ] && words+=(--set training.ema_start=1)
    for pair in "${@:5}"; do words+=(--set "$pair"); done
    torchrun --nproc-per-node "$ranks" -m sfpp_cli "${words[@]}"
}
mkdir -p "$runs"

stage VAE "$runs/vae.done" bash -c "
    torchrun --nproc-per-node $ranks examples/toyworld/train_vae.py --out $runs/vae --steps $vae && touch $runs/vae.done"
gate vae --vae "$runs/vae/vae" --report "$runs/gate_vae.json"
stage latents "$runs/latents.done" bash -c "
    python examples/toyworld/encode_world.py --vae $runs/vae/vae --out $runs/latents --videos $videos --frames 97 && touch $runs/latents.done"
stage layout "$runs/init" python examples/toyworld/init_model.py --vae "$runs/vae/vae" --out "$runs/init"

teacher_step=$(step "$runs/teacher" $teacher)
stage teacher "$teacher_step" sfpp_run train examples/toyworld/teacher.toml "$runs/teacher" $teacher \
    "model=$runs/init" "data.latents=$runs/latents"
stage teacher-bundle "$runs/teacher-bundle" python examples/pack.py --init "$runs/init" --teacher "$teacher_step" \
    --out "$runs/teacher-bundle"
gate teacher --model "$runs/teacher-bundle" --guidance 2 --report "$runs/gate_teacher.json"

ode_student=$(step "$runs/student" $ode)/student-ema
stage ODE "$ode_student" sfpp_run distill examples/toyworld/student.toml "$runs/student" $ode \
    "model=$runs/teacher-bundle" "pairs.folder=$runs/pairs" "pairs.count=$pairs"
stage bundle "$runs/bundle" python examples/pack.py --init "$runs/init" --teacher "$teacher_step" --student "$ode_student" \
    --out "$runs/bundle"
for method in self-forcing self-forcing-pp; do
    stage $method "$(step "$runs/$method" $updates)" sfpp_run train examples/toyworld/$method.toml "$runs/$method" $updates \
        "model=$runs/bundle" "student=$ode_student"
done
stage weights "$runs/toyworld" python examples/pack.py --init "$runs/init" --teacher "$teacher_step" \
    --student "$(step "$runs/self-forcing-pp" $updates)/student-ema" \
    --beside "ode=$ode_student" "self-forcing=$(step "$runs/self-forcing" $updates)/student-ema" --out "$runs/toyworld"
echo "made $runs/toyworld: sfpp generate --model $runs/toyworld; copy it to weights/ to embed it"
