#!/bin/sh
# LoRA fine-tuning of InternVL3-9B on DFBench, with the paper code's settings.
#
#   sh shell/train_deepfake.sh                    one GPU (or the CPU, where there is none)
#   NPROC_PER_NODE=8 sh shell/train_deepfake.sh   eight GPUs, ZeRO-1
#   MODEL=/weights/InternVL3-9B EPOCHS=1 sh shell/train_deepfake.sh --max_steps 10
#
# Every setting below can be set as a variable; further flags go to `swift sft` and win over these.
set -eu
here=$(dirname "$0")/..
[ -n "${VAL:-}" ] || [ ! -f "$here/data/img_val.jsonl" ] || VAL=$here/data/img_val.jsonl

exec "${PYTHON:-python}" -m dfbench.training.train sft \
    --model "${MODEL:-$here/OpenGVLab/InternVL3-9B}" \
    --model_type internvl \
    --template dfbench_internvl \
    --external_plugins "$here/../dfbench/training/swift_plugin.py" \
    --check_model false \
    --train_annotations "${TRAIN:-$here/data/deepfake.json}" \
    ${VAL:+--val_annotations "$VAL"} \
    --val_fraction "${VAL_FRACTION:-0.01}" \
    --image_root "${IMAGE_ROOT:-$here/..}" \
    --strict true \
    --output_dir "${OUTPUT_DIR:-$here/output_ckpt}" \
    --add_version false \
    --create_checkpoint_symlink false \
    --tuner_type lora \
    --target_modules all-linear \
    --freeze_vit false \
    --freeze_aligner true \
    --lora_rank "${LORA_RANK:-8}" \
    --lora_alpha "${LORA_ALPHA:-16}" \
    --lora_dropout "${LORA_DROPOUT:-0.05}" \
    --torch_dtype bfloat16 \
    --attn_impl "${ATTN_IMPL:-sdpa}" \
    --num_train_epochs "${EPOCHS:-5}" \
    --per_device_train_batch_size "${BATCH_SIZE:-4}" \
    --per_device_eval_batch_size "${BATCH_SIZE:-4}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS:-1}" \
    --learning_rate "${LEARNING_RATE:-4e-5}" \
    --lr_scheduler_type "${LR_SCHEDULER:-cosine}" \
    --warmup_ratio "${WARMUP_RATIO:-0.03}" \
    --weight_decay "${WEIGHT_DECAY:-0.01}" \
    --adam_beta2 "${ADAM_BETA2:-0.999}" \
    --max_length "${MAX_LENGTH:-4096}" \
    --gradient_checkpointing "${GRADIENT_CHECKPOINTING:-true}" \
    --deepspeed "${DEEPSPEED:-zero1}" \
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
