#!/bin/sh
# What LoRA fine-tuning of the three models has in common: how weights are held, saved and reported on. The shells of
# the model folders call this with the paper code's settings of their model; later flags win.
set -eu

exec "${PYTHON:-python}" -m dfbench.training.train sft \
    ${IMAGE_ROOT:+--image_root "$IMAGE_ROOT"} \
    --val_fraction "${VAL_FRACTION:-0.01}" \
    --tuner_type lora \
    --target_modules all-linear \
    --freeze_aligner true \
    --torch_dtype bfloat16 \
    --attn_impl "${ATTN_IMPL:-sdpa}" \
    --gradient_checkpointing "${GRADIENT_CHECKPOINTING:-true}" \
    --gradient_accumulation_steps "${GRADIENT_ACCUMULATION_STEPS:-1}" \
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
