#!/bin/sh
# Fuzz the library: cpp/test/fuzz/run.sh SECONDS [BUILD_FOLDER]
# Needs clang with its sanitizers (Debian: clang libclang-rt-14-dev). The corpora grow in
# BUILD_FOLDER/corpus-*; a crash leaves its input in BUILD_FOLDER and stops the script.
set -eu
seconds=${1:?usage: run.sh SECONDS [BUILD_FOLDER]}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=${2:-build-fuzz}
CC=clang CXX=clang++ cmake -S "$here/../.." -B "$build" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="-O1 -g" -DDESTSEG_WITH_OPENVINO=OFF -DDESTSEG_WITH_ONNXRUNTIME=OFF \
  -DDESTSEG_FAKE_TENSORRT=ON -DDESTSEG_BUILD_FUZZERS=ON -DDESTSEG_SANITIZE=address,undefined \
  -DDESTSEG_WERROR=ON
cmake --build "$build" --parallel 2
cd "$build"
for name in spec infer pnm; do
  mkdir -p "corpus-$name"
  dict=
  [ $name = spec ] && dict="-dict=$here/spec.dict"
  nice test/fuzz_$name "corpus-$name" "$here/seeds/$name" $dict -max_total_time="$seconds" \
    -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 2> "fuzz-$name.log" ||
    { tail -40 "fuzz-$name.log"; exit 1; }
  grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "fuzz-$name.log" | sed "s/^/$name /"
done
