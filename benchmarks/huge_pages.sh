#!/usr/bin/env bash
# Time of a training step on CPU with and without huge pages for malloc, three times alternately.
set -euo pipefail
cd "$(dirname "$0")/.."
for _ in 1 2 3; do
  for setting in glibc.malloc.hugetlb=1 glibc.malloc.hugetlb=0; do
    echo "$setting $(GLIBC_TUNABLES=$setting python benchmarks/step_time.py \
      --config configs/clip_emoji.py "$@")"
  done
done
