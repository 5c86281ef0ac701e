#!/usr/bin/env bash
# Training on a machine that has a GPU and nothing else: speech, synthesisers and wheels arrive in parcels (parcels.sh).
#
#   host.sh unpack PARCEL        copy one parcel to the machine's own disk; once for each parcel
#   host.sh prepare              install the wheels, decode people's speech: about half a minute
#   host.sh smoke                150 steps on people's speech alone: does it run, how fast, where goes the time
#   host.sh trial                what a step costs, launched and replayed, and which kernels take longest: a minute
#   host.sh speak CALL MINUTES   start the synthesisers, one on each spare core, in the background
#   host.sh train CALL MINUTES TOTAL [ARGUMENTS]   speak, and train meanwhile; results in $OUT
#   host.sh report               word errors on all test sets
set -euo pipefail
here=${AULA_TRAINING:-/tmp/aula-training}
python=${PYTHON:-python3}
cores=${CORES:-$(nproc)}
out=${OUT:-$here/out}
export PYTHONPATH="$here/site:$PWD" PYTHONUNBUFFERED=1 SYNTHS_FOLDER="$here/synths"
# Threads of their own for each of many workers would only get in each other's way.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
mkdir -p "$here" "$out"

unpack() {
    cp -a "$1/." "$here/"
    ls "$here"
}

prepare() {
    mkdir -p "$here/site"
    for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$here/site"; done
    for archive in "$here"/*.tar.xz; do [ ! -e "$archive" ] || "$python" -m tarfile -e "$archive" "$here"; done
    # These two look for their voices in fixed places.
    ln -sfn "$here/synths/share/pico" /usr/share/pico
    ln -sfn "$here/synths/share/RHVoice" /usr/share/RHVoice
    ln -sfn "$here/synths/etc/RHVoice" /etc/RHVoice
    "$python" -m training.recogniser.corpora "$here/people" --shared "$here/shared" --processes "$cores"
    "$python" -m training.recogniser.shards "$here/packed" "$here/recorded" --processes "$cores"
    "$python" -m training.recogniser.shards "$here/held-out" "$here/held-out-voices" --processes "$cores"
}

smoke() {
    rm -rf "$here/smoke"
    OMP_NUM_THREADS=4 "$python" -m training.recogniser.train "$here/smoke" --tokens "$here/texts/tokens.json" \
        --data "$here/people/train" "$here/recorded" --dev "$here/people/dev" --steps 150 --capacity-hours 8 --profile "$@"
    cp "$here/smoke/profile.txt" "$out/smoke-profile.txt"
    head -c 6000 "$out/smoke-profile.txt"
    test -s "$here/smoke/config.json"
}

trial() {
    OMP_NUM_THREADS=4 "$python" -m training.recogniser.trial --tokens "$here/texts/tokens.json" \
        --data "$here/people/train" "$here/recorded" "$@"
}

say() { # worker, seed, hours, minutes, voices...: one synthesiser, of low priority
    local worker=$1 seed=$2 hours=$3 minutes=$4
    shift 4
    nice -n 10 "$python" -m training.recogniser.synthesise "$here/synthetic" --texts "$here/texts/train.tsv" \
        --worker "$worker" --seed "$seed" --hours "$hours" --minutes "$minutes" --voices "$@"
}

chain() { # worker, call, kind, minutes: the quick voices first, or those of models; then those of models to the end
    local began=$SECONDS whole=${4%.*} # the shell counts in whole numbers
    if [ "$3" = quick ]; then
        say "$1" "$2" 2.5 "$4" espeak || true
        say "$1" "$2" 1 "$4" flite:awb flite:slt flite:kal16 || true
    fi
    say "$1" "$2" 99 "$((whole - (SECONDS - began) / 60))" rhvoice:alan rhvoice:bdl rhvoice:slt pico:en-US pico:en-GB
}

speak() {
    local call=$1 minutes=$2 worker kind spoken
    mkdir -p "$here/synthetic"
    spoken=$(find "$here/synthetic" -name 'flite-*.json' | wc -l)
    for worker in $(seq 1 $((cores - 2))); do
        kind=quick
        # Two workers in five begin with the voices of models; so do all where the quick ones have spoken already.
        if [ "$spoken" -gt 100 ] || [ $((worker % 5)) -ge 3 ]; then kind=models; fi
        setsid bash "$0" chain "$worker" "$call" "$kind" "$minutes" >> "$out/voices-$call.log" 2>&1 &
    done
}

train() {
    local call=$1 minutes=$2 total=$3
    shift 3
    speak "$call" "$minutes"
    mkdir -p "$here/run"
    OMP_NUM_THREADS=4 "$python" -m training.recogniser.train "$here/run" --tokens "$here/texts/tokens.json" \
        --data "$here/people/train" "$here/recorded" "$here/synthetic" --dev "$here/people/dev" --least-hours "${LEAST_HOURS:-8}" \
        --minutes "$minutes" --total-minutes "$total" "$@" || echo "training ended with $?"
    for worker in $(jobs -p); do kill -- "-$worker" 2> /dev/null || true; done
    cp "$here"/run/weights-*.safetensors "$here/run/config.json" "$here/run/log.jsonl" "$out/" || true
    du -sh "$here/synthetic"
    ls "$here/synthetic" | sed 's/-.*//' | sort | uniq -c
}

report() {
    "$python" -m training.recogniser.evaluate "$here/run" --tokens "$here/texts/tokens.json" \
        --data "$here/people/test" "$here/people/dev" "$here/held-out-voices" --chunk 8 16 32 | tee "$out/report.jsonl"
}

"$@"
