#!/bin/sh
# LoRA fine-tuning of Qwen2.5-VL-7B on DFBench, with the paper code's settings.
#
#   sh train.sh                                   one GPU (or the CPU, where there is none)
#   NPROC_PER_NODE=8 sh train.sh                  eight GPUs
#   MODEL=/weights/Qwen2.5-VL-7B-Instruct EPOCHS=2 sh train.sh --max_steps 10
#
# Every setting below can be set as a variable; further flags go to `swift sft` and win over these.
set -eu
here=$(dirname "$0")
[ -n "${VAL:-}" ] || [ ! -f "$here/datasets/img_val.json" ] || VAL=$here/datasets/img_val.json
# The bounds on an image's area that scoring has (dfbench/models/qwen2_5_vl.py): 4 and 1,536 tokens of 28x28 pixels.
export MIN_PIXELS="${MIN_PIXELS:-3136}" MAX_PIXELS="${MAX_PIXELS:-1204224}"

exec "${PYTHON:-python}" -m dfbench.training.train sft \
    --model "${MODEL:-$here/../Qwen/Qwen2.5-VL-7B-Instruct}" \
    --model_type qwen2_5_vl \
    --template qwen2_5_vl \
    --system "You are a helpful assistant." \
    --external_plugins "$here/../dfbench/training/swift_plugin.py" \
    --check_model false \
    --train_annotations "${TRAIN:-$here/datasets/img_train_shuffled.json}" \
    ${VAL:+--val_annotations "$VAL"} \
    --val_fraction "${VAL_FRACTION:-0.01}" \
    --image_root "${IMAGE_ROOT:-$here/..}" \
    --strict true \
    --output_dir "${OUTPUT_DIR:-$here/output_ckpt}" \
    --add_version false \
    --create_checkpoint_symlink false \
    --tuner_type lora \
    --target_modules all-linear \
    --freeze_vit true \
    --freeze_aligner true \
    --lora_rank "${LORA_RANK:-8}" \
    --lora_alpha "${LORA_ALPHA:-32}" \
    --lora_dropout "${LORA_DROPOUT:-0.05}" \
    --torch_dtype bfloat16 \
    --attn_impl "${ATTN_IMPL:-sdpa}" \
    --num_train_epochs "${EPOCHS:-1}" \
    --per_device_train_batch_size "${BATCH_SIZE:-2}" \
    --per_device_eval_batch_size "${BATCH_SIZE:-2}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS:-1}" \
    --learning_rate "${LEARNING_RATE:-1e-4}" \
    --lr_scheduler_type "${LR_SCHEDULER:-cosine}" \
    --warmup_ratio "${WARMUP_RATIO:-0.05}" \
    --weight_decay "${WEIGHT_DECAY:-0.01}" \
    --max_length "${MAX_LENGTH:-2048}" \
    --gradient_checkpointing "${GRADIENT_CHECKPOINTING:-true}" \
    --dataloader_num_workers "${WORKERS:-4}" \
    --seed "${SEED:-42}" \
    --save_strategy steps \
    --save_steps "${SAVE_STEPS:-500}" \
    --eval_strategy steps \
    --eval_steps "${EVAL_STEPS:-500}" \
    --save_total_limit "${SAVE_TOTAL_LIMIT:-2}" \
    --logging_steps "${LOGGING_STEPS:-10}" \
    --report_to "${REPORT_TO:-none}" \
    "$@"
