#!/bin/sh
# Merge the LoRA weights into the base model: `sh shell/merge_lora.sh` takes the newest adapter of output_ckpt and writes
# output_ckpt/merged/<its name>, where resumed training, which removes old checkpoints, does not look.
#
#   ADAPTERS=./output_ckpt/your_weights MERGED=./output_ckpt/your_weights_merged sh shell/merge_lora.sh
set -eu
here=$(dirname "$0")/..

exec "${PYTHON:-python}" -m dfbench.training.train export \
    --trained "${OUTPUT_DIR:-$here/output_ckpt}" \
    ${ADAPTERS:+--adapters "$ADAPTERS"} \
    ${MERGED:+--output_dir "$MERGED"} \
    "$@"
