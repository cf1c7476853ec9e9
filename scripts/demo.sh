#!/bin/sh
# The whole pipeline at toy size on a CPU: set-up, demo data, LoRA training of small models of the real
# architectures, merging, A/B scoring, MoA-DF, tables, feature plots. Everything it makes lies in demo/.
#
#   sh scripts/demo.sh            a second run goes on where the first one stopped; `rm -r demo` starts over
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
[ "${DFBENCH_NO_VENV:-}" = 1 ] || PATH=$PWD/.venv/bin:$PATH
export PATH HF_HUB_OFFLINE=1

started=$(date +%s)
fail() {
    tail -n 5 "demo/$1.log" >&2
    echo "error: see demo/$1.log" >&2
    exit 1
}
merged() { # earlier versions merged into <adapter>_merged
    ls "$OUTPUT_DIR"/merged/*/config.json "$OUTPUT_DIR"/*_merged/config.json 2> /dev/null | grep -q .
}
step() {
    echo
    echo "== $1 ($(($(date +%s) - started)) s)"
}

step "demo data: real photographs and stand-in fakes"
python scripts/make_demo.py
python scripts/prepare_dataset.py --archives demo/archives --image_root demo \
    --annotation_dir demo/annotations --val_fraction 0.02

step "small models with random weights"
python scripts/make_tiny_models.py
python scripts/make_tiny_models.py --list > demo/agents.txt

export IMAGE_ROOT=demo TRAIN=demo/annotations/img_train.jsonl VAL=demo/annotations/img_val.jsonl
export TEST=demo/annotations/img_test.jsonl WORKERS=0
export BATCH_SIZE=8 GRADIENT_CHECKPOINTING=false EVAL_STEPS=1000 SAVE_STEPS=1000

# One thread: with two, such small matrices are no faster and wait for each other.
export OMP_NUM_THREADS=1

# Each agent's own shells train, merge and score; $@ becomes the list of their CSVs.
set --
while read -r agent train merge evaluate learning_rate steps <&3; do
    export OUTPUT_DIR="demo/output_ckpt/$agent" LEARNING_RATE="$learning_rate"
    if ! merged; then
        step "$agent: LoRA training"
        rm -rf "$OUTPUT_DIR"
        MODEL=demo/models/$agent sh "$agent/$train" --max_steps "$steps" > "demo/$agent-train.log" 2>&1 || fail "$agent-train"
        step "$agent: merging"
        sh "$agent/$merge" > "demo/$agent-merge.log" 2>&1 || fail "$agent-merge"
    fi
    step "$agent: scoring"
    set -- "$@" "demo/results/$agent.csv"
    OUTPUT_CSV=demo/results/$agent.csv sh "$agent/$evaluate"
done 3< demo/agents.txt

step "image features"
python feature_distribution.py --image_root demo --output_dir demo/results/features
python plot_features.py --features_dir demo/results/features --output_dir demo/results/figures

step "MoA-DF, tables and report"
python logit_calculation.py "$@" --output_csv demo/results/moa_df.csv
python process_results.py "$@" demo/results/moa_df.csv --output_dir demo/results \
    --audit --image_root demo --features_dir demo/results/features

step "done"
echo "tables:  demo/results/tables"
echo "report:  demo/results/report.html"
echo "figures: demo/results/figures"
