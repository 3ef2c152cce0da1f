#!/bin/sh
# The library needs no headers of ONNX Runtime. A test compares its own declarations with the vendor's;
# Debian 13's libonnxruntime-dev has them (API 21). This fetches them into a folder, on Debian and
# Ubuntu, without installing anything and without touching the system's package lists:
#
#     cpp/get-onnxruntime-headers.sh .venv/include
#
# makes .venv/include/onnxruntime/onnxruntime_c_api.h. Elsewhere, take those of a release package.
set -eu
folder=${1:?usage: get-onnxruntime-headers.sh FOLDER}
[ -f "$folder/onnxruntime/onnxruntime_c_api.h" ] && exit 0
mkdir -p "$folder"
folder=$(CDPATH='' cd -- "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] http://deb.debian.org/debian trixie main" > "$work/sources.list"
private() {
  apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
    -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}
private update > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
(cd "$work" && private download libonnxruntime-dev > log 2>&1) || { cat "$work/log" >&2; exit 1; }
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/package"
cp -r "$work/package/usr/include/onnxruntime" "$folder/onnxruntime"
