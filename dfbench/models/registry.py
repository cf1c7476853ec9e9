"""The model families that can be scored and trained, and MoA-DF's agents: the one place that lists them.

A family is one module with one `Family` record here; an agent is one `Agent` record and one folder with its shells.
Everything else (evaluators, training, fusion's defaults, preparation's targets, the demo) follows from the records.
Importing this module is quick: a family's classes are imported when a checkpoint of it is loaded.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import read_config, usable_checkpoint
from dfbench.paths import REPOSITORY, RESULTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dfbench.models.base import Prompt, Scorer


ENGINES = ("auto", "packed", "transformers")
"""auto: the packed layers where they compute all of the model, or else transformers' own forward pass."""


@dataclass(frozen=True)
class Family:
    """What the programs have to know of a model family.

    name: also the `model_type` that ms-swift knows it by. model_types: those of config.json that belong to it.
    prompt, scorer: its classes, as "module:Class". template: ms-swift's, for training.
    protocols: prompt and image protocols to choose from, the default first; none where there is but one.
    """

    name: str
    model_types: tuple[str, ...]
    prompt: str
    scorer: str
    template: str
    protocols: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agent:
    """One of the detectors that MoA-DF fuses: a model folder of the repository.

    name: of its folder and its CSV. title: of the model, for people. hub_id: of the released weights.
    train_annotations, test_annotations: what its shells read where nothing is named, relative to its folder.
    evaluate: the command that writes its CSV, typed in its folder.
    """

    name: str
    title: str
    family: str
    hub_id: str
    train_annotations: str
    test_annotations: str
    evaluate: str

    @property
    def folder(self) -> Path:
        return REPOSITORY / self.name

    @property
    def csv(self) -> Path:
        return RESULTS / f"{self.name}.csv"


FAMILIES: dict[str, Family] = {}
AGENTS: dict[str, Agent] = {}


def register(record: Family | Agent) -> None:
    """Make a family or an agent known to every program. Raises ValueError where its name is taken."""
    known = FAMILIES if isinstance(record, Family) else AGENTS
    if record.name in known:
        raise ValueError(f"{record.name} is registered already")
    known[record.name] = record


register(
    Family(
        "qwen2_5_vl",
        ("qwen2_5_vl",),
        prompt="dfbench.models.qwen2_5_vl:QwenPrompt",
        scorer="dfbench.models.qwen2_5_vl:QwenScorer",
        template="qwen2_5_vl",
    )
)
register(
    Family(
        "internvl",
        ("internvl",),
        prompt="dfbench.models.internvl:InternVLPrompt",
        scorer="dfbench.models.internvl:InternVLScorer",
        template="dfbench_internvl",
        protocols=("upstream", "native"),
    )
)
register(
    Agent(
        "qwen2.5",
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        train_annotations="datasets/img_train_shuffled.json",
        test_annotations="datasets/img_test.json",
        evaluate="python evaluate_logit.py",
    )
)
register(
    Agent(
        "internvl2.5",
        "InternVL2.5-8B",
        "internvl",
        "OpenGVLab/InternVL2_5-8B",
        train_annotations="data/img_train_shuffled.jsonl",
        test_annotations="data/img_test.jsonl",
        evaluate="sh shell/eval_deepfake.sh",
    )
)
register(
    Agent(
        "internvl3",
        "InternVL3-9B",
        "internvl",
        "OpenGVLab/InternVL3-9B",
        train_annotations="data/img_train_shuffled.jsonl",
        test_annotations="data/img_test.jsonl",
        evaluate="sh shell/eval_deepfake.sh",
    )
)

MOA_DF_CSV = RESULTS / "moa_df.csv"


def agent_csvs(*, partial: bool = False) -> list[Path]:
    """The agents' files. Raises InputError, naming the command to run, where one is missing.

    With `partial` the missing ones are left out, and only all of them missing is an error.
    """
    missing = [agent for agent in AGENTS.values() if not agent.csv.exists()]
    if missing and not (partial and len(missing) < len(AGENTS)):
        first = missing[0]
        raise InputError(
            f"{first.csv.relative_to(REPOSITORY)}: no such file. Run `cd {first.name} && {first.evaluate}` first, "
            f"or name the CSVs to read."
        )
    return [agent.csv for agent in AGENTS.values() if agent not in missing]


def detector_csvs(*, partial: bool = False) -> list[Path]:
    """The agents' files, then MoA-DF's where there is one."""
    return agent_csvs(partial=partial) + ([MOA_DF_CSV] if MOA_DF_CSV.exists() else [])


def family_of(model_type: str | None) -> Family | None:
    """The family of a config's `model_type`, None for one that is not registered."""
    return next((family for family in FAMILIES.values() if model_type in family.model_types), None)


def check_checkpoint(checkpoint: Path, only: str | None = None) -> Family:
    """The family of a checkpoint folder, by its config.json alone. Raises InputError where there is none, and for
    another family than the one named `only`: one model under another's name would count twice in MoA-DF.
    """
    model_type = read_config(checkpoint).get("model_type")
    family = FAMILIES["internvl"] if model_type == "internvl_chat" else family_of(model_type)  # the former is converted
    if family is None:
        known = " or ".join(name for each in FAMILIES.values() for name in each.model_types)
        raise InputError(
            f"{checkpoint / 'config.json'}: model_type is {shorten(model_type)}; expected {known}. "
            f"Name a checkpoint of such a model."
        )
    if only and family.name != only:
        raise InputError(
            f"{checkpoint}: a checkpoint of the family {family.name}, not {only}. "
            f"Correct --model_path, or use that model's own folder."
        )
    return family


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def load_prompt(checkpoint: Path, protocol: str | None = None, *, engine: str = "auto") -> "Prompt":
    """The CPU side of a checkpoint folder, by its config's `model_type`. protocol: None for the family's first.

    Raises InputError for any other family, and where the tokenizer or the image processor is missing or broken.
    """
    from huggingface_hub.errors import StrictDataclassError

    checkpoint = usable_checkpoint(checkpoint)
    family = check_checkpoint(checkpoint)
    prompt_class = _load(family.prompt)
    options = (protocol or family.protocols[0],) if family.protocols else ()
    try:
        return prompt_class(checkpoint, *options)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{checkpoint}: its config, tokenizer or image processor cannot be used ({shorten(reason, 200)}). "
            f"Download the whole folder again."
        ) from None


def load_scorer(
    prompt: "Prompt",
    *,
    device: str,
    dtype: str,
    adapter: Path | None = None,
    compiled: bool = False,
    fp8: bool = False,
    engine: str = "auto",
) -> "Scorer":
    """The GPU side of the same checkpoint, weights loaded; `compiled` and `fp8`: see `Scorer`, `Scorer.quantize`.

    Raises InputError as `load_model` does, and where the GPU's memory does not hold the weights.
    """
    import torch

    from dfbench.models.base import load_model

    try:
        model = load_model(prompt.checkpoint, device=device, dtype=dtype, adapter=adapter)
        scorer = scorer_of(model, prompt, compiled=compiled)
        if fp8:
            scorer.quantize()
    except torch.OutOfMemoryError as error:
        raise InputError(
            prompt.checkpoint,
            found=f"not enough GPU memory for its weights ({shorten(str(error), 100)})",
            expected=f"memory for the model in {dtype}",
            remedy="free memory on the GPU, or use a larger one, and repeat the command",
        ) from None
    return scorer


def scorer_of(model: "PreTrainedModel", prompt: "Prompt", *, compiled: bool = False) -> "Scorer":
    """The scorer of a model that is loaded already. It fuses the model's layers in place."""
    return _load(FAMILIES[prompt.family].scorer)(model, prompt, compiled=compiled)
