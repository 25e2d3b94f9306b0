#!/usr/bin/env bash
# SET and GET against Redis, in interleaved rounds: server pinned to one core, generator to the other.
# Prints one line per run, then the medians: ops/s, server CPU-microseconds per operation, p50 and p99 in us.
#   benches/compare.sh [rounds] [seconds]       needs: redis-server, taskset, python3; a release build
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} seconds=${2:-5}
bin=target/release
dir=$(mktemp -d "${ATLASKV_BENCH_DIR:-/var/tmp}/atlaskv-compare.XXXXXX")
pids=()
finish() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$dir"; }
trap finish EXIT

for redis in "always 7501 --appendonly yes --appendfsync always" "memory 7502 --appendonly no"; do
  read -r name port flags <<<"$redis"
  mkdir -p "$dir/$name"
  # shellcheck disable=SC2086
  taskset -c 0 redis-server --port "$port" --dir "$dir/$name" --save '' $flags >"$dir/$name.log" 2>&1 &
  pids+=($!)
done
taskset -c 0 $bin/atlaskv --cores 1 --data-dir "$dir/atlaskv" --listen 127.0.0.1:7503 --memory 2GiB \
  >"$dir/ready" 2>"$dir/atlaskv.log" &
pids+=($!)
until grep -q ready "$dir/ready" && redis-cli -p 7501 ping && redis-cli -p 7502 ping; do
  kill -0 "${pids[2]}" || { cat "$dir/atlaskv.log"; exit 1; }
done >/dev/null 2>&1

bench() { taskset -c 1 $bin/atlaskv-bench --clients 50 --keys 1000000 --value-size 100 --quiet "$@"; }
run() { # name, target, pid, mix, pipeline
  bench --target "$2" --pipeline "$5" --duration "${seconds}s" --warmup 1s --mix "$4" --distribution uniform \
    --server-pid "$3" >"$dir/run.txt" 2>&1 || { cat "$dir/run.txt"; exit 1; }
  awk -v name="$1" -v mix="$4" -v pipeline="$5" '
    $1 == "total" { ops = $3; p50 = $7; p99 = $9; gsub(",", "", ops) }
    $1 == "server:" { cpu = $2 }
    END { print name, mix, pipeline, ops, cpu, p50, p99 }' "$dir/run.txt" | tee -a "$dir/all.txt"
}
for target in redis://127.0.0.1:7501 redis://127.0.0.1:7502 atlaskv://127.0.0.1:7503; do
  bench --target $target --pipeline 64 --preload-only >/dev/null 2>&1
done
for _ in $(seq "$rounds"); do
  for pipeline in 1 16 64; do
    run redis-always redis://127.0.0.1:7501 "${pids[0]}" set=1 $pipeline
    run atlaskv atlaskv://127.0.0.1:7503 "${pids[2]}" set=1 $pipeline
    run redis-memory redis://127.0.0.1:7502 "${pids[1]}" set=1 $pipeline
    run redis-memory redis://127.0.0.1:7502 "${pids[1]}" get=1 $pipeline
    run atlaskv atlaskv://127.0.0.1:7503 "${pids[2]}" get=1 $pipeline
  done
done
echo "medians: server load pipeline ops/s cpu-us/op p50-us p99-us"
python3 - "$dir/all.txt" <<'PY'
import statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, mix, pipeline, *figures = line.split()
    runs.setdefault((mix, int(pipeline), name), []).append([float(f) for f in figures])
for (mix, pipeline, name), rows in sorted(runs.items()):
    print(name, mix, pipeline, *(f"{statistics.median(column):.2f}" for column in zip(*rows)))
PY
