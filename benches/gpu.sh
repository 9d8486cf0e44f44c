#!/usr/bin/env bash
# Everything that is measured on a GPU, on a machine that has one and no cargo.
#
#   benches/gpu.sh pack FOLDER                   here: builds, strips and copies what it needs (DEVICE=cuda)
#   FOLDER/gpu.sh run [OUT]                      there: at most eight minutes; writes OUT/gpu.json and OUT/gpu.md (OUT: `results`)
#
# DEVICE is `cuda`, `vulkan` or `wgpu`, the same for both. SMALL=1 takes sizes for a software adapter. Peers need Python with torch and
# torchvision; without, their columns are empty.
set -euo pipefail
device=${DEVICE:-cuda}

pack() {
    local root target programs
    root=$(cd "$(dirname "$0")/.." && pwd)
    mkdir -p "$1"
    cd "$root"
    target=${CARGO_TARGET_DIR:-target}
    # As JSON, a line for each program that was built.
    programs=$(
        cargo build --release --message-format=json -p dr-train --features "$device" --bin dr-train
        cargo build --release --message-format=json -p dr-kernels --features "$device,unstable" --test parity --test parity_integer
        cargo build --release --message-format=json -p dr-bench --features "$device" --bench all
    )
    cd - >/dev/null
    echo "$programs" | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] in ("dr-train", "parity", "parity_integer", "all"):
        print(message["target"]["name"], message["executable"])' | sort -u | while read -r name path; do
        strip -o "$1/$name" "$path"
    done
    cp "$root"/benches/gpu.sh "$root"/benches/peers/torch_joint.py "$root"/benches/peers/torch_peers.py "$1/"
    # The benchmark writes where this file is.
    cp "$root/$target/CACHEDIR.TAG" "$1/" 2>/dev/null || cp "$target/CACHEDIR.TAG" "$1/"
    chmod +x "$1/gpu.sh"
    du -sh "$1"
}

# step NAME SECONDS COMMAND...: runs it, keeps what it prints, and how it ended. All together end in eight minutes.
step() {
    local name=$1 left=$((470 - SECONDS)) start=$SECONDS code=0
    local limit=$(($2 < left ? $2 : left > 0 ? left : 1))
    shift 2
    printf '== %s (%s s)\n' "$name" "$SECONDS" >&2
    timeout "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err" || code=$?
    echo "$name $code $((SECONDS - start))" >>"$out/steps"
    [ "$code" = 0 ] || { echo "$name: exit code $code" >&2 && tail -n 3 "$out/$name.err" >&2; }
}

# Images and labels by chance, in the format of CIFAR-10 and as a folder of classes, and a text.
make_data() {
    python3 - "$1" "$images" "$pictures" "$words" <<'PYTHON'
import os, random, struct, sys, zlib

folder, (images, pictures, words) = sys.argv[1], map(int, sys.argv[2:5])
random.seed(1)
cifar = os.path.join(folder, "cifar")
os.makedirs(cifar, exist_ok=True)
for name, count in [(f"data_batch_{i}.bin", images // 5) for i in range(1, 6)] + [("test_batch.bin", 200)]:
    with open(os.path.join(cifar, name), "wb") as file:
        for i in range(count):
            file.write(bytes([i % 10]) + random.randbytes(3072))

def png(path, side, color):
    row = b"\0" + bytes(color) * side
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row * side, 1)), chunk(b"IEND", b"")])
    with open(path, "wb") as file:
        file.write(data)

for part, count in [("train", pictures), ("val", 32)]:
    for i in range(count):
        names = os.path.join(folder, "pictures", part, f"class{i % 4}")
        os.makedirs(names, exist_ok=True)
        png(os.path.join(names, f"{i}.png"), 256, [random.randrange(256) for _ in range(3)])
with open(os.path.join(folder, "text.txt"), "w") as file:
    vocabulary = ["bits", "scales", "codes", "layers", "networks", "round", "switch", "weigh", "the", "a", "of", "and"]
    file.write(" ".join(random.choice(vocabulary) for _ in range(words)))
PYTHON
}

run() {
    here=$(cd "$(dirname "$0")" && pwd)
    out=${1:-results}
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    : >"$out/steps"
    if [ -n "${SMALL:-}" ]; then
        images=100 pictures=16 words=3000 batch=16 side=32 steps=2 size=256 hidden=64 layers=1 tokens=4 torch=cpu
    else
        images=12800 pictures=1280 words=60000 batch=64 side=224 steps=20 size=8192 hidden=1024 layers=8 tokens=64 torch=cuda
    fi
    data=$(mktemp -d)
    trap 'rm -rf "$data"' EXIT
    make_data "$data"
    cd "$data"
    train() {
        step "train-$1" "$2" "$here/dr-train" train --device "$device" --out "$data/$1" --json "${@:3}"
    }
    torch_joint() {
        step "torch-$1" 60 python3 "$here/torch_joint.py" --device "$torch" --steps "$steps" "${@:2}"
    }
    step parity 60 "$here/parity" "$device::"
    step parity_integer 60 "$here/parity_integer" "$device::"
    mkdir -p "$here/peers"
    if [ "$torch" = cuda ]; then
        step torch-kernels 45 python3 "$here/torch_peers.py" "$size"
        cp "$out/torch-kernels.out" "$here/peers/torch.json"
    fi
    DR_BENCH_DEVICE=$device DR_BENCH_SIZE=$size step kernels 75 "$here/all" --bench "device|fake_quantize|quantize_pack|switch/|dequantize"
    cp "$here/bench.json" "$out/" 2>/dev/null || true
    train resnet20 100 --dataset cifar10 --data-dir "$data/cifar" --model resnet20 --batch-size $((2 * batch)) --float-epochs 2 --epochs 2
    torch_joint resnet20 --model resnet20 --size 32 --batch $((2 * batch))
    train resnet18 120 --dataset folder --data-dir "$data/pictures" --model resnet18 --image-size "$side" --batch-size "$batch" \
        --precisions 8,4 --float-epochs 2 --epochs 2
    torch_joint resnet18 --model resnet18 --size "$side" --batch "$batch" --precisions 8,4
    train llama 60 --dataset text --data-dir "$data/text.txt" --hidden "$hidden" --layers "$layers" --precisions w8a8,w4a8 \
        --float-epochs 1 --epochs 1
    for precision in w8a8 w4a8; do
        step "generate-$precision" 30 "$here/dr-train" generate --model "$data/llama/model.safetensors" --device "$device" \
            --precision "$precision" --prompt "the codes of layers" --tokens "$tokens"
    done
    collect | tee "$out/gpu.md"
}

# One file and one table of all steps.
collect() {
    python3 - "$out" "$device" <<'PYTHON'
import json, os, re, sys

out, device = sys.argv[1], sys.argv[2]
read = lambda name: open(os.path.join(out, name), errors="replace").read()
steps = [dict(zip(("step", "code", "seconds"), (name, int(code), int(seconds))))
         for name, code, seconds in (line.split() for line in read("steps").splitlines())]

def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return {}

rows, result = [], {"device": device, "steps": steps}
for step in steps:
    name, printed = step["step"], read(step["step"] + ".out")
    if name.startswith("parity"):
        found = re.search(r"test result: .*", printed)
        rows.append((name, found.group(0) if found else "did not end", "", ""))
    elif name.startswith("train-"):
        epochs = parsed(printed).get("history", [])
        # Lines of epochs tell the rate; the last epoch of a phase has compiled nothing.
        rates = re.findall(r"^(float|joint) +(\d+)/\d+ +[\d.]+ s +([\d.,]+) ", read(name + ".err"), re.M)
        for phase in ("float", "joint"):
            of_phase = [(epoch["seconds"]) for epoch in epochs if str(epoch["phase"]).lower().startswith(phase)]
            rate = [float(rate.replace(",", "")) for kind, _, rate in rates if kind == phase]
            peer = next((parsed(read(s["step"] + ".out")).get(phase) for s in steps if s["step"] == name.replace("train-", "torch-")), None)
            step[phase] = {"seconds": of_phase, "rates": rate, "torch": peer}
            rows.append((f"{name[6:]}, {phase}: items a second", rate[-1] if rate else "did not end", peer or "",
                         f"{rate[-1] / peer:.2f}" if rate and peer else ""))
            if len(of_phase) > 1:
                rows.append((f"{name[6:]}, {phase}: seconds of the first epoch", f"{of_phase[0]:.1f}", "", ""))
    elif name.startswith("generate-"):
        found = re.search(r"([\d.]+) tokens/s", read(name + ".err") + printed)
        step["tokens_per_second"] = float(found.group(1)) if found else None
        rows.append((f"llama at {name[9:]}: tokens a second", step["tokens_per_second"] or "did not end", "", ""))
if os.path.isfile(os.path.join(out, "bench.json")):
    result["kernels"] = parsed(read("bench.json"))
    by_group = {}
    for one in result["kernels"].get("measurements", []):
        by_group.setdefault(one["group"], {})[one["name"]] = one["ms"]
    for group, times in sorted(by_group.items()):
        peers = {name: ms for name, ms in times.items() if "torch" in name}
        best = min(peers.values(), default=None)
        for name, ms in sorted(times.items()):
            if name not in peers:
                rows.append((f"{group}, {name}: ms", f"{ms:.4f}", f"{best:.4f}" if best else "", f"{best / ms:.2f}" if best else ""))
with open(os.path.join(out, "gpu.json"), "w") as file:
    json.dump(result, file, indent=1)
print("| work | ours | PyTorch | ours / PyTorch (rates) |\n|---|---|---|---|")
for row in rows:
    print("| " + " | ".join(str(cell) for cell in row) + " |")
print(f"\n{sum(step['seconds'] for step in steps)} s in all; {', '.join(s['step'] for s in steps if s['code']) or 'nothing'} failed")
PYTHON
}

case ${1:-} in
pack | run) "$@" ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
