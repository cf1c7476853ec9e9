#!/bin/sh
# Score the test images by the logits of A and B. `sh eval.sh` takes the newest merged model (or adapter) of output_ckpt.
#
#   MODEL=./output_ckpt/your_weights_merged sh eval.sh
#   MODEL=../Qwen/Qwen2.5-VL-7B-Instruct ADAPTER=./output_ckpt/your_weights sh eval.sh --limit 1000
#
# TEST, IMAGE_ROOT, OUTPUT_DIR, OUTPUT_CSV and BATCH_SIZE can be set as variables as well (scripts/score.sh).
set -eu
here=$(dirname "$0")

exec sh "$here/../scripts/score.sh" "$here" "$@"
