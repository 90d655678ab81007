#!/usr/bin/env bash
# The first minutes on a GPU that these kernels have not run on, in the order in which answers matter:
#
#     warm      every product of a block is compiled, a process per scheme; meanwhile
#     doctor    each kernel against the reference, in production's shapes and in CUDA graphs
#     hopper    tests of Hopper's kernels, and of layers in a row: 200 replays of a CUDA graph
#     kernels   tests of all others
#     linear    the main cells beside cuBLAS and the peers that are installed, a step per scheme
#     host      what a call costs the host
#
#     OUT=results bash tools/first_contact.sh
#
# At most about 540 seconds, each step with a limit of its own: a kernel that hangs costs its process and is named. End
# hung processes, never reset the GPU. OUT gets the full log and a JSON file per measurement; the exit code is 1 if a
# step failed. pytest-xdist and pytest-timeout are needed. Without a GPU this is a rehearsal: tests are only collected,
# and a small layer is measured on the CPU. PYTHON and WORKERS (processes of tests) can be set.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WORKERS=${WORKERS:-13}
OUT=$(mkdir -p "${OUT:-first_contact}" && cd "${OUT:-first_contact}" && pwd)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.
failed=0

if nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null; then
    device=cuda shapes="28672x4096 4096x14336 4096x4096" cells="8b.gate_up 8b.down 8b.o" rows="1 16 64 256 4096" collect=
else
    echo "no GPU: a rehearsal"
    device=cpu shapes=64x128 cells=64x128 rows="1 4" collect="--collect-only -q"
fi

# step SECONDS NAME LINES COMMAND…: the end of its output here, all of it in the log
step() {
    local seconds=$1 name=$2 lines=$3 code note=
    shift 3
    timeout -k 5 "$seconds" "$@" >"$OUT/$name.out" 2>&1
    code=$?
    [ $code -eq 0 ] || failed=1
    [ $code -ne 124 ] || note=", it took too long"
    { echo "== $name"; cat "$OUT/$name.out"; } >>"$OUT/log"
    echo "== $name: exit code $code$note, at $SECONDS s"
    tail -n "$lines" "$OUT/$name.out" | cut -c1-170
    rm "$OUT/$name.out"
}

# Its last line says what was running when the time was up.
warm() {
    timeout -k 5 120 "$PYTHON" - "$1" "$device" $shapes -- $rows <<'END'
import sys

import torch

import tritonq

scheme, device, *sizes = sys.argv[1:]
shapes, rows = sizes[: sizes.index("--")], sizes[sizes.index("--") + 1 :]
words = {"device": device, "dtype": torch.bfloat16}
with torch.inference_mode():
    for shape in shapes:
        features, columns = map(int, shape.split("x"))
        linear = torch.nn.Linear(columns, features, bias=False, **words)
        layer = tritonq.nn.QuantizedLinear.from_float(linear, scheme)
        for count in map(int, rows):
            print(scheme, shape, f"M={count}", flush=True)
            layer(torch.randn(count, columns, **words)).sum().item()
print("all compiled and run")
END
}

: >"$OUT/log"
processes=()
for scheme in w4a16 w8a16 w8a8 w4a8; do
    warm $scheme >"$OUT/warm.$scheme" 2>&1 &
    processes+=($!)
done
step 130 doctor 80 "$PYTHON" -m tritonq doctor --timeout 45 --json "$OUT/doctor.json"
for scheme in w4a16 w8a16 w8a8 w4a8; do
    wait "${processes[0]}"
    code=$?
    processes=("${processes[@]:1}")
    [ $code -eq 0 ] || failed=1
    echo "== warm $scheme: exit code $code: $(tail -n 1 "$OUT/warm.$scheme" | cut -c1-120)"
done

tests=("$PYTHON" -m pytest -n "$WORKERS" -q -o addopts= -rfE --tb=short -p no:benchmark -p no:cacheprovider
    --timeout 45 --timeout-method thread $collect)
step 100 hopper 30 "${tests[@]}" tests/test_hopper_*.py tests/test_chained_layers.py
step 90 kernels 25 "${tests[@]}" tests/test_kernels_*.py
for scheme in w4a16 w4a8 w8a16 w8a8; do
    step 48 "$scheme" 22 "$PYTHON" -m benchmarks.linear --shapes $cells --m $rows --schemes $scheme --peers \
        --json "$OUT/$scheme.json"
done
step 30 host 14 "$PYTHON" -m benchmarks.host_overhead --json "$OUT/host.json"
exit $failed
