#!/bin/sh
# LoRA fine-tuning of InternVL2.5-8B on DFBench, with the paper code's settings.
#
#   sh shell/train_deepfake.sh                    one GPU (or the CPU, where there is none)
#   NPROC_PER_NODE=8 sh shell/train_deepfake.sh   eight GPUs, ZeRO-1
#   MODEL=/weights/InternVL2_5-8B EPOCHS=1 sh shell/train_deepfake.sh --max_steps 10
#
# Every setting below, and in scripts/train_lora.sh, can be set as a variable; further flags go to `swift sft` and win.
set -eu
here=$(dirname "$0")/..
[ -n "${VAL:-}" ] || [ ! -f "$here/data/img_val.jsonl" ] || VAL=$here/data/img_val.jsonl
# The README of the paper code downloads the weights to internvl25/, without the dot.
[ -n "${MODEL:-}" ] || [ ! -d "$here/../internvl25/OpenGVLab/InternVL2_5-8B" ] || MODEL=$here/../internvl25/OpenGVLab/InternVL2_5-8B

exec sh "$here/../scripts/train_lora.sh" \
    --model "${MODEL:-$here/OpenGVLab/InternVL2_5-8B}" \
    --model_type internvl \
    --train_annotations "${TRAIN:-$here/data/deepfake.json}" \
    ${VAL:+--val_annotations "$VAL"} \
    --output_dir "${OUTPUT_DIR:-$here/output_ckpt}" \
    --freeze_vit false \
    --lora_rank "${LORA_RANK:-8}" \
    --lora_alpha "${LORA_ALPHA:-16}" \
    --lora_dropout "${LORA_DROPOUT:-0.05}" \
    --num_train_epochs "${EPOCHS:-5}" \
    --per_device_train_batch_size "${BATCH_SIZE:-4}" \
    --per_device_eval_batch_size "${BATCH_SIZE:-4}" \
    --learning_rate "${LEARNING_RATE:-4e-5}" \
    --lr_scheduler_type "${LR_SCHEDULER:-cosine}" \
    --warmup_ratio "${WARMUP_RATIO:-0.03}" \
    --weight_decay "${WEIGHT_DECAY:-0.01}" \
    --adam_beta2 "${ADAM_BETA2:-0.999}" \
    --max_length "${MAX_LENGTH:-4096}" \
    "$@"
