#!/bin/sh
# Merge the LoRA weights into the base model: `sh merge_lora.sh` takes the newest adapter of output_ckpt;
# ADAPTERS=./output_ckpt/your_weights sh merge_lora.sh   writes ./output_ckpt/your_weights_merged.
set -eu
here=$(dirname "$0")

exec "${PYTHON:-python}" -m dfbench.training.train export \
    --trained "${OUTPUT_DIR:-$here/output_ckpt}" \
    ${ADAPTERS:+--adapters "$ADAPTERS"} \
    ${MERGED:+--output_dir "$MERGED"} \
    "$@"
