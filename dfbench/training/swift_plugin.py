"""ms-swift plug-in (`--external_plugins`): training sees the very token ids and pixels that scoring sees.

Only `swift` imports this file; nothing else in the package depends on ms-swift.

- Registers the template `dfbench_internvl`: upstream's InternVL prompt and its 1024x1024 image protocol, built by
  `dfbench.models.internvl`. ms-swift's own `internvl_hf` has another system text, newlines and dynamic tiling.
- Qwen2.5-VL needs no template of ours: `dfbench.models.qwen2_5_vl` follows ms-swift's `qwen2_5_vl`.
- Truncated images are decoded as far as they go, as in scoring. By default Pillow refuses them, and ms-swift would put
  another row in their place.
"""

from pathlib import Path
from typing import Any

from PIL import ImageFile
from swift.template import TemplateMeta, register_template
from swift.template.template_inputs import StdTemplateInputs
from swift.template.templates.internvl import InternvlhfTemplate

from dfbench.models.internvl import InternVLPrompt

ImageFile.LOAD_TRUNCATED_IMAGES = True

END_OF_TURN = "<|im_end|>"


class DFBenchInternVLTemplate(InternvlhfTemplate):
    """One question about one image, answered by one letter: prompt ids, then the letter and `<|im_end|>` as labels."""

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        question, answer = inputs.messages[0]["content"], inputs.messages[-1]["content"]
        if len(inputs.messages) != 2 or len(inputs.images) != 1:
            raise ValueError(f"a row needs one question, one answer and one image: {inputs.messages}")
        prompt = self._prompt()
        prepared = prompt.prepare(question, inputs.images[0])
        before = prepared.input_ids.tolist()
        target = self.tokenizer(str(answer or "") + END_OF_TURN, add_special_tokens=False).input_ids if answer else []
        return {
            "input_ids": before + target,
            "labels": [-100] * len(before) + target if self.is_training else None,
            "loss_scale": None,
            "pixel_values": prompt.pixel_values(prepared.pixels, self.model_info.torch_dtype),
        }

    @staticmethod
    def _add_default_tags(inputs: StdTemplateInputs) -> None:
        """Leave a question without `<image>` alone: InternVLPrompt puts the image in front of it, as in scoring."""

    def _prompt(self) -> InternVLPrompt:
        if not hasattr(self, "_built"):
            self._built = InternVLPrompt(Path(self.model_info.model_dir))
        return self._built


register_template(
    TemplateMeta(
        "dfbench_internvl",
        prefix=[],
        prompt=["{{QUERY}}"],
        chat_sep=None,
        suffix=[END_OF_TURN],
        template_cls=DFBenchInternVLTemplate,
    )
)
