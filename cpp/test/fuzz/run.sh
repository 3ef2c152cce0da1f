#!/bin/sh
# Fuzz the library: cpp/test/fuzz/run.sh SECONDS [BUILD_FOLDER]
# Needs clang with its sanitizers (Debian: clang libclang-rt-14-dev). The corpora grow in
# BUILD_FOLDER/corpus-*; a crash leaves its input in BUILD_FOLDER and stops the script.
# DESTSEG_FUZZ_CONTROL=1 puts a bug into each target and fails unless each is found: the negative
# control, one minute is enough for it. DESTSEG_FUZZ_IMAGE_SECONDS shortens the last target.
set -eu
seconds=${1:?usage: run.sh SECONDS [BUILD_FOLDER]}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=${2:-build-fuzz}
CC=clang CXX=clang++ cmake -S "$here/../.." -B "$build" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="-O1 -g${DESTSEG_FUZZ_CONTROL:+ -DDESTSEG_FUZZ_CONTROL}" -DDESTSEG_WITH_OPENVINO=OFF -DDESTSEG_WITH_ONNXRUNTIME=OFF \
  -DDESTSEG_FAKE_TENSORRT=ON -DDESTSEG_BUILD_FUZZERS=ON -DDESTSEG_SANITIZE=address,undefined \
  -DDESTSEG_WERROR=ON
cmake --build "$build" --parallel 2
cd "$build"
export DESTSEG_TENSORRT_LIBRARY="$PWD/libdestseg_fake_tensorrt.so"
export DESTSEG_CUDART_LIBRARY="$PWD/libdestseg_fake_tensorrt.so"
for name in spec infer image; do
  [ -z "${DESTSEG_FUZZ_CONTROL:-}" ] || rm -rf "corpus-$name"
  mkdir -p "corpus-$name"
  dict=
  [ $name = spec ] && dict="-dict=$here/spec.dict"
  time=$seconds
  [ $name = image ] && time=${DESTSEG_FUZZ_IMAGE_SECONDS:-$seconds}
  found=0
  nice test/fuzz_$name "corpus-$name" "$here/seeds/$name" $dict -max_total_time="$time" \
    -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 2> "fuzz-$name.log" ||
    found=1
  if [ -n "${DESTSEG_FUZZ_CONTROL:-}" ]; then
    [ $found = 1 ] || { echo "$name: the bug was not found"; exit 1; }
    grep -m 1 -E '^==.*ERROR' "fuzz-$name.log" | sed "s/^/$name found: /"
  elif [ $found = 1 ]; then
    tail -40 "fuzz-$name.log"
    exit 1
  fi
  grep -E '^#[0-9]+.*(INITED|DONE)' "fuzz-$name.log" | sed "s/^/$name /"
  grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "fuzz-$name.log" | sed "s/^/$name /"
done
