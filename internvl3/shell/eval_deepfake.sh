#!/bin/sh
# Score the test images by the logits of A and B. `sh shell/eval_deepfake.sh` takes the newest merged model (or adapter) of output_ckpt.
#
#   MODEL=./output_ckpt/your_weights_merged sh shell/eval_deepfake.sh
#   MODEL=./OpenGVLab/InternVL3-9B ADAPTER=./output_ckpt/your_weights sh shell/eval_deepfake.sh --limit 1000
set -eu
here=$(dirname "$0")/..

exec "${PYTHON:-python}" "$here/evaluate_logit.py" \
    ${MODEL:+--model_path "$MODEL"} \
    ${ADAPTER:+--adapter "$ADAPTER"} \
    ${OUTPUT_DIR:+--train_dir "$OUTPUT_DIR"} \
    ${TEST:+--dataset_path "$TEST"} \
    ${IMAGE_ROOT:+--image_root "$IMAGE_ROOT"} \
    ${OUTPUT_CSV:+--output_csv "$OUTPUT_CSV"} \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} \
    "$@"
