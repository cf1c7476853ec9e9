"""What `swift sft --external_plugins` adds to ms-swift, so that training sees what scoring sees.

- A template for each family whose record names one of ours (`dfbench_...`): token ids and pixels are those of the
  family's `Prompt`. For InternVL that is upstream's protocol; ms-swift's own `internvl_hf` has another system text,
  newlines and dynamic tiling. Qwen2.5-VL needs none: `dfbench.models.qwen2_5_vl` follows ms-swift's `qwen2_5_vl`.
- Truncated images are decoded as far as they go, as in scoring. By default Pillow refuses them, and ms-swift would put
  another row in their place.
- Each process of ms-swift, torchrun's workers included, ends when the one that launched it does: training that outlived
  it would go on writing to a folder whose lock is gone.
"""

import os
import select
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ImageFile
from swift.template import Template, TemplateMeta, register_template
from swift.template.template_inputs import StdTemplateInputs

from dfbench.models.base import Prompt
from dfbench.models.registry import FAMILIES, load_prompt
from dfbench.training.launch import LAUNCHER

ImageFile.LOAD_TRUNCATED_IMAGES = True

END_OF_TURN = "<|im_end|>"


class PromptTemplate(Template):
    """One question about one image, answered by one letter: prompt ids, then the letter and `<|im_end|>` as labels."""

    support_padding_free = True
    placeholder_tokens: list[int] = []  # noqa: RUF012 - ms-swift appends each model's image token to it

    @cached_property
    def prompt(self) -> Prompt:
        return load_prompt(Path(self.model_info.model_dir))

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        question, answer = inputs.messages[0]["content"], inputs.messages[-1]["content"]
        if len(inputs.messages) != 2 or len(inputs.images) != 1:
            raise ValueError(f"a row needs one question, one answer and one image: {inputs.messages}")
        prepared = self.prompt.prepare(question, inputs.images[0])
        before = prepared.input_ids.tolist()
        target = self.tokenizer(str(answer or "") + END_OF_TURN, add_special_tokens=False).input_ids if answer else []
        return {
            "input_ids": before + target,
            "labels": [-100] * len(before) + target if self.is_training else None,
            "loss_scale": None,
            "pixel_values": self.prompt.pixel_values(prepared.pixels, self.model_info.torch_dtype),
        }

    @staticmethod
    def _add_default_tags(inputs: StdTemplateInputs) -> None:
        """Leave a question without `<image>` alone: the prompt puts the image in front of it, as in scoring."""


for family in FAMILIES.values():
    if family.template.startswith("dfbench_"):
        meta = TemplateMeta(family.template, prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=[END_OF_TURN])
        meta.template_cls = PromptTemplate
        register_template(meta)


def _end_with_launcher() -> None:
    """From now on, end this process at once when the one that launched it has ended, `kill -9` included."""
    try:
        descriptor = os.pidfd_open(int(os.environ[LAUNCHER]))
    except ProcessLookupError:  # it has ended already
        os._exit(1)
    except (KeyError, AttributeError, OSError):  # ms-swift was started by hand, or this is no Linux of today
        return
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    threading.Thread(target=lambda: waiting.poll() and os._exit(1), daemon=True).start()


_end_with_launcher()
