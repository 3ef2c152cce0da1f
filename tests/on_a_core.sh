#!/bin/sh
# Run a command on one core that no other such command has: on_a_core.sh FOLDER COMMAND...
# Where taskset or flock is missing, or no core is free, it runs on all of them.
#
# A locked file in FOLDER stands for a core. The lock is that of an open file, which the command keeps open, so it
# ends with the command however that ends.
folder=$1
shift

cores() {
  taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r first last; do seq "$first" "${last:-$first}"; done
}

if command -v taskset > /dev/null && command -v flock > /dev/null; then
  for core in $(cores); do
    exec 9> "$folder/core-$core"
    flock -n 9 && exec taskset -c "$core" "$@"
  done
fi
exec "$@"
