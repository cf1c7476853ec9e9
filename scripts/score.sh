#!/bin/sh
# What scoring with the three models has in common: variables become flags of evaluate_logit.py, further flags follow.
# The shells of the model folders call this with their folder.
set -eu
folder=$1
shift

exec "${PYTHON:-python}" "$folder/evaluate_logit.py" \
    ${MODEL:+--model_path "$MODEL"} \
    ${ADAPTER:+--adapter "$ADAPTER"} \
    ${OUTPUT_DIR:+--train_dir "$OUTPUT_DIR"} \
    ${TEST:+--dataset_path "$TEST"} \
    ${IMAGE_ROOT:+--image_root "$IMAGE_ROOT"} \
    ${OUTPUT_CSV:+--output_csv "$OUTPUT_CSV"} \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} \
    "$@"
