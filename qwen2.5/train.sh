#!/bin/sh
# LoRA fine-tuning of Qwen2.5-VL-7B on DFBench, with the paper code's settings.
#
#   sh train.sh                                   one GPU (or the CPU, where there is none)
#   NPROC_PER_NODE=8 sh train.sh                  eight GPUs
#   MODEL=/weights/Qwen2.5-VL-7B-Instruct EPOCHS=2 sh train.sh --max_steps 10
#
# Every setting below, and in scripts/train_lora.sh, can be set as a variable; further flags go to `swift sft` and win.
set -eu
here=$(dirname "$0")
[ -n "${VAL:-}" ] || [ ! -f "$here/datasets/img_val.json" ] || VAL=$here/datasets/img_val.json
# The bounds on an image's area that scoring has (dfbench/models/qwen2_5_vl.py): 4 and 1,536 tokens of 28x28 pixels.
export MIN_PIXELS="${MIN_PIXELS:-3136}" MAX_PIXELS="${MAX_PIXELS:-1204224}"

exec sh "$here/../scripts/train_lora.sh" \
    --model "${MODEL:-$here/../Qwen/Qwen2.5-VL-7B-Instruct}" \
    --model_type qwen2_5_vl \
    --system "You are a helpful assistant." \
    --train_annotations "${TRAIN:-$here/datasets/img_train_shuffled.json}" \
    ${VAL:+--val_annotations "$VAL"} \
    --output_dir "${OUTPUT_DIR:-$here/output_ckpt}" \
    --freeze_vit true \
    --lora_rank "${LORA_RANK:-8}" \
    --lora_alpha "${LORA_ALPHA:-32}" \
    --lora_dropout "${LORA_DROPOUT:-0.05}" \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "${BATCH_SIZE:-2}" \
    --per_device_eval_batch_size "${BATCH_SIZE:-2}" \
    --learning_rate "${LEARNING_RATE:-1e-4}" \
    --lr_scheduler_type "${LR_SCHEDULER:-cosine}" \
    --warmup_ratio "${WARMUP_RATIO:-0.05}" \
    --weight_decay "${WEIGHT_DECAY:-0.01}" \
    --max_length "${MAX_LENGTH:-2048}" \
    "$@"
