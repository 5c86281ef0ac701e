#!/usr/bin/env bash
# Packs all that a training needs into parcels of less than 60 MB, for a machine that cannot be reached otherwise.
#
#   parcels.sh OUT SHARED TEXTS RECORDED HELD_OUT WHEELS SYNTHS.tar.xz
#
# SHARED is the folder of people's speech, TEXTS holds train.tsv and tokens.json, RECORDED and HELD_OUT are shards of
# voices that were synthesised here, WHEELS holds the Python packages of the other
# machine, SYNTHS the programs flite, RHVoice-test and pico2wave with their libraries and voices.
set -euo pipefail
out=$1 shared=$2 texts=$3 recorded=$4 held_out=$5 wheels=$6 synths=$7
rm -rf "$out"/p[1-3]
mkdir -p "$out"/p1/shared "$out"/p2/{shared,held-out} "$out"/p3/{wheels,packed}

cp -r "$shared/train_speechocean762" "$out/p1/shared/"
cp -r "$shared"/speech_en_{speechocean762,ljspeech,misc,digits_fsdd} "$out/p2/shared/"
cp "$synths" "$out/p2/"
cp "$held_out"/* "$out/p2/held-out/"
cp "$wheels"/*.whl "$out/p3/wheels/"
tar -cJf "$out/p3/texts.tar.xz" -C "$(dirname "$texts")" "$(basename "$texts")"
cp "$recorded"/* "$out/p3/packed/"
du -sm "$out"/p[1-3]
